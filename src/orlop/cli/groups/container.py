"""What is done to containers that are there, beyond what the main commands do."""

from __future__ import annotations

from typing import Annotated

import typer

from orlop.cli.parameters import Grace, Name, Names, Socket

app = typer.Typer(rich_markup_mode=None)


@app.command()
def kill(
    names: Names,
    signal: Annotated[str, typer.Option("--signal", "-s", help="A name or a number.")] = "KILL",
    socket: Socket = "",
) -> None:
    """Send containers a signal: KILL to all of their processes, others to the first."""
    from orlop.cli import containers, session

    session.run_async(lambda: containers.kill_command(socket, names, signal))


@app.command()
def pause(names: Names, socket: Socket = "") -> None:
    """Stop all processes of containers where they are."""
    from orlop.cli import containers, session

    session.run_async(lambda: containers.pause_command(socket, names, paused=True))


@app.command()
def unpause(names: Names, socket: Socket = "") -> None:
    """Let paused containers go on."""
    from orlop.cli import containers, session

    session.run_async(lambda: containers.pause_command(socket, names, paused=False))


@app.command()
def restart(
    names: Names,
    timeout: Grace = 10,
    socket: Socket = "",
) -> None:
    """Run containers that `orlop run` made again, running or not: with new ids, and fresh files."""
    from orlop.cli import containers, session

    session.run_async(lambda: containers.restart_command(socket, names, timeout))


@app.command()
def port(name: Name, socket: Socket = "") -> None:
    """The ports of this machine that lead into a pod."""
    from orlop.cli import containers, session

    session.run_async(lambda: containers.port_command(socket, name))
