"""``orlop system``: the machine as the daemon has it."""

from __future__ import annotations

from typing import Annotated

import typer

from orlop.cli.parameters import FormatText, Json, Socket

app = typer.Typer(rich_markup_mode=None, help="What the daemon has on this machine.", no_args_is_help=True)


@app.command()
def info(format: FormatText = "", as_json: Json = False, socket: Socket = "") -> None:  # noqa: A002
    """The daemon, whether it is ready, and how much it looks after."""
    from orlop.cli import formats, session, system

    formats.check(format)
    session.run_async(lambda: system.info_command(socket, format, as_json))


@app.command()
def df(format: FormatText = "", socket: Socket = "") -> None:  # noqa: A002 - the option's name
    """What images and containers take on the disk, and what of it nobody needs."""
    from orlop.cli import formats, session, system

    printer = formats.Printer(system.DF, format)
    session.run_async(lambda: system.df_command(socket, printer))


@app.command()
def prune(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also the images that no container uses.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask.")] = False,
    socket: Socket = "",
) -> None:
    """Remove what has ended of that which `orlop run` and `orlop pod` made."""
    from orlop.cli import session, system

    session.run_async(lambda: system.prune_command(socket, images=everything, force=force))
