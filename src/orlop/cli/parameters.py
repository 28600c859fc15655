"""The options and arguments that commands have in common."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from orlop.cli import completing

PASS_THROUGH = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}
"""For commands whose last words are another command's."""

Many = Optional[list[str]]  # noqa: UP045 - typer reads this at run time
Files = Optional[list[Path]]  # noqa: UP045


class NetworkChoice(StrEnum):
    """What `run --network` takes."""

    pod = "pod"
    host = "host"


class FormatChoice(StrEnum):
    """What `--format` takes."""

    text = "text"
    json = "json"


class YesNo(StrEnum):
    """What options take that podman has with a value, such as ``--tls-verify=false``."""

    true = "true"
    false = "false"


Socket = Annotated[
    str, typer.Option("--socket", help="The daemon's socket.", envvar="ORLOP_SOCKET", show_default=False)
]
_ONE, _SEVERAL = "Id, start of an id, or name.", "Ids, starts of ids, or names."
Name = Annotated[str, typer.Argument(help=_ONE, show_default=False, autocompletion=completing.containers)]
Names = Annotated[
    list[str], typer.Argument(help=_SEVERAL, show_default=False, autocompletion=completing.containers)
]
PodName = Annotated[str, typer.Argument(help=_ONE, show_default=False, autocompletion=completing.pods)]
PodNames = Annotated[
    list[str], typer.Argument(help=_SEVERAL, show_default=False, autocompletion=completing.pods)
]
ImageName = Annotated[
    str,
    typer.Argument(help="An image, by name or id.", show_default=False, autocompletion=completing.images),
]
ImageNames = Annotated[
    list[str],
    typer.Argument(help="Images, by name or id.", show_default=False, autocompletion=completing.images),
]
ConfigFile = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this at run time
    typer.Option("--config", help="The daemon's configuration file.", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only what a script needs.")]
Format = Annotated[FormatChoice, typer.Option("--format", help="For people or for programs.")]
Target = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this at run time
    typer.Option("--output", "-o", help="The file to write.", show_default=False),
]
FormatText = Annotated[
    str,
    typer.Option(
        "--format", help="json, a template such as '{{.ID}}', or table and one.", show_default=False
    ),
]
ShortFormat = Annotated[
    str,
    typer.Option("--format", "-f", help="json, or a template such as '{{.Id}}'.", show_default=False),
]
Everything = Annotated[bool, typer.Option("--all", "-a", help="All that `orlop` has made.")]
Ignore = Annotated[bool, typer.Option("--ignore", "-i", help="Also where there is none.")]
Filter = Annotated[Many, typer.Option("--filter", "-f", help="KEY=VALUE; a wrong key names those there are.")]
LongFilter = Annotated[Many, typer.Option("--filter", help="KEY=VALUE; a wrong key names those there are.")]
EventFormat = Annotated[
    str,
    typer.Option(
        "--format", help="json, an object each; or a template such as '{{.Status}}'.", show_default=False
    ),
]
Whole = Annotated[bool, typer.Option("--no-trunc", help="Cut nothing.")]
Some = Annotated[
    Many, typer.Argument(help=_SEVERAL, show_default=False, autocompletion=completing.containers)
]
Json = Annotated[bool, typer.Option("--json", help="The daemon's answer as JSON.")]
Grace = Annotated[
    Optional[int],  # noqa: UP045 - typer reads this at run time
    typer.Option("--timeout", "--time", "-t", help="Seconds before it is killed; 10, or its own.", min=0),
]
Restart = Annotated[
    str, typer.Option("--restart", help="Run it again when it has ended: on-failure[:TIMES] or always.")
]
