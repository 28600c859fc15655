"""``orlop run``."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from orlop.cli import completing
from orlop.cli.parameters import PASS_THROUGH, Many, Restart, Socket
from orlop.cli.words import ContainerWords, LimitWords, PodWords, spread

app = typer.Typer(rich_markup_mode=None)


class PullChoice(StrEnum):
    """What `run --pull` takes."""

    missing = "missing"
    always = "always"
    never = "never"


_Image = Annotated[
    str,
    typer.Argument(
        help="The image, for example docker.io/library/busybox.", autocompletion=completing.images
    ),
]
_Pod = Annotated[
    str,
    typer.Option(
        "--pod", help="A pod that is there, instead of one of its own.", autocompletion=completing.pods
    ),
]


@app.command(context_settings=PASS_THROUGH)
@spread
def run(
    image: _Image,
    command: Annotated[Many, typer.Argument(help="Instead of the image's own.")] = None,
    *,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Hand stdin through.")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")] = False,
    remove: Annotated[bool, typer.Option("--rm", help="Remove everything when it ends.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it and return.")] = False,
    name: Annotated[str, typer.Option("--name", help="Its name.")] = "",
    replace_: Annotated[bool, typer.Option("--replace", help="Remove the one of this name first.")] = False,
    pod: _Pod = "",
    cidfile: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time
        typer.Option("--cidfile", help="Where to write its id; a new file.", show_default=False),
    ] = None,
    container_words: ContainerWords,
    limits: LimitWords,
    pod_words: PodWords,
    restart: Restart = "no",
    pull: Annotated[PullChoice, typer.Option("--pull", help="When to fetch the image.")] = PullChoice.missing,
    socket: Socket = "",
) -> None:
    """Run a command in a new container, in a pod of its own or one that is there. Its exit code is ours."""
    from orlop.cli import run as running
    from orlop.cli import session, words
    from orlop.cli.problems import CliError
    from orlop.client import restarts

    if pod and pod_words.given:
        raise CliError(
            "ports, handler, host name, name servers, sysctls and network are a pod's: "
            "give them to `orlop pod create`",
            exit_code=2,
        )
    policy = restarts.parse(restart)
    wanted = replace(
        words.pod_options(name, pod_words, limits),
        image=image,
        command=tuple(command or ()),
        interactive=interactive,
        tty=tty,
        # In the foreground the command removes it, which shows its output to the end.
        remove=remove and detach,
        # And runs it again.
        restart=policy.wish() if detach else "",
        **words.container_options(container_words, tty=tty),
    )
    how = running.How(
        pod=pod,
        pull=pull.value,
        detach=detach,
        remove=remove,
        replace=replace_,
        cidfile=cidfile,
        policy=policy,
    )
    job = partial(running.run_command, socket, wanted, how)
    raise typer.Exit(session.run_async(job, code=running.exit_code))
