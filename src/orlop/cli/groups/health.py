"""``orlop healthcheck``."""

from __future__ import annotations

import typer

from orlop.cli.parameters import Name, Socket

app = typer.Typer(rich_markup_mode=None, help="The health of containers.", no_args_is_help=True)

_NOT_CHECKED = 125


@app.callback()
def healthcheck() -> None:
    """The health of containers."""


@app.command()
def run(name: Name, socket: Socket = "") -> None:
    """Run a container's health check now. Exit code 0 when all is well, 1 when not, 125 without a check."""
    from orlop.cli import containers, session

    job = session.run_async(lambda: containers.check_command(socket, name), code=lambda error: _NOT_CHECKED)
    raise typer.Exit(job)
