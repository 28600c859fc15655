"""``orlop pod``: pods that hold several containers, or none yet."""

from __future__ import annotations

from typing import Annotated

import typer

from orlop.cli.parameters import FormatText, Json, PodNames, Quiet, Socket, Whole
from orlop.cli.words import LimitWords, PodWords, spread

app = typer.Typer(rich_markup_mode=None, help="Pods for several containers.", no_args_is_help=True)


@app.command()
@spread
def create(
    name: Annotated[str, typer.Argument(help="A made-up one else.", show_default=False)] = "",
    *,
    pod_words: PodWords,
    limits: LimitWords,
    socket: Socket = "",
) -> None:
    """Make a pod that has no containers yet; `orlop run --pod` puts them into it. Prints its id."""
    from orlop.cli import pods, session, words

    wanted = words.pod_options(name, pod_words, limits)
    session.run_async(lambda: pods.create_command(socket, wanted))


@app.command("ls")
def list_(
    quiet: Quiet = False,
    no_trunc: Whole = False,
    format: FormatText = "",  # noqa: A002 - the option's name
    as_json: Json = False,
    socket: Socket = "",
) -> None:
    """List the pods."""
    from orlop.cli import formats, pods, session

    printer = formats.Printer(pods.SHAPE, format, whole=no_trunc)
    session.run_async(lambda: pods.list_command(socket, printer, quiet=quiet, as_json=as_json))


@app.command()
def stop(names: PodNames, socket: Socket = "") -> None:
    """End pods and everything in them; what they wrote stays to be looked at."""
    from orlop.cli import pods, session

    session.run_async(lambda: pods.stop_command(socket, names))


@app.command()
def rm(
    names: PodNames,
    force: Annotated[bool, typer.Option("--force", "-f", help="Also with running containers.")] = False,
    socket: Socket = "",
) -> None:
    """Remove pods with everything in them."""
    from orlop.cli import pods, session

    session.run_async(lambda: pods.rm_command(socket, names, force=force))
