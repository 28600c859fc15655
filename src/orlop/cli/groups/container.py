"""What is done to containers that are there, beyond what the main commands do."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from orlop.cli.parameters import PASS_THROUGH, Everything, Grace, Ignore, Many, Name, Quiet, Socket, Some

app = typer.Typer(rich_markup_mode=None)


@app.command("exec", context_settings=PASS_THROUGH)
def exec_(
    name: Name,
    command: Annotated[list[str], typer.Argument(help="The command and its arguments.", show_default=False)],
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Hand stdin through.")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")] = False,
    socket: Socket = "",
) -> None:
    """Run a command in a running container. Its exit code becomes ours."""
    from orlop.cli import containers, session

    job = partial(containers.exec_command, socket, name, tuple(command), interactive=interactive, tty=tty)
    raise typer.Exit(session.run_async(job))


@app.command()
def stop(
    names: Some = None,
    timeout: Grace = None,
    *,
    everything: Everything = False,
    ignore: Ignore = False,
    socket: Socket = "",
) -> None:
    """Stop containers."""
    from orlop.cli import choosing, containers, session

    chosen = choosing.Chosen(names or (), everything, ignore)
    session.run_async(lambda: containers.stop_command(socket, chosen, timeout))


@app.command()
def rm(
    names: Some = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Running ones as well.")] = False,
    *,
    everything: Everything = False,
    ignore: Ignore = False,
    socket: Socket = "",
) -> None:
    """Remove containers, with the pods that `orlop run` made for them."""
    from orlop.cli import choosing, containers, session

    chosen = choosing.Chosen(names or (), everything, ignore)
    session.run_async(lambda: containers.rm_command(socket, chosen, force=force))


@app.command()
def kill(
    names: Some = None,
    signal: Annotated[str, typer.Option("--signal", "-s", help="A name or a number.")] = "KILL",
    *,
    everything: Everything = False,
    socket: Socket = "",
) -> None:
    """Send containers a signal: KILL to all of their processes, others to the first."""
    from orlop.cli import choosing, containers, session

    chosen = choosing.Chosen(names or (), everything)
    session.run_async(lambda: containers.kill_command(socket, chosen, signal))


@app.command()
def pause(names: Some = None, everything: Everything = False, socket: Socket = "") -> None:
    """Stop all processes of containers where they are."""
    from orlop.cli import choosing, containers, session

    chosen = choosing.Chosen(names or (), everything)
    session.run_async(lambda: containers.pause_command(socket, chosen, paused=True))


@app.command()
def unpause(names: Some = None, everything: Everything = False, socket: Socket = "") -> None:
    """Let paused containers go on."""
    from orlop.cli import choosing, containers, session

    chosen = choosing.Chosen(names or (), everything)
    session.run_async(lambda: containers.pause_command(socket, chosen, paused=False))


@app.command()
def restart(
    names: Some = None,
    timeout: Grace = None,
    *,
    everything: Everything = False,
    socket: Socket = "",
) -> None:
    """Run containers that `orlop run` made again, running or not: with new ids, and fresh files."""
    from orlop.cli import choosing, containers, session

    chosen = choosing.Chosen(names or (), everything)
    session.run_async(lambda: containers.restart_command(socket, chosen, timeout))


@app.command()
def rename(
    name: Name,
    new: Annotated[str, typer.Argument(help="Its name from now on.", show_default=False)],
    socket: Socket = "",
) -> None:
    """Give a container that `orlop` made another name."""
    from orlop.cli import containers, session

    session.run_async(lambda: containers.rename_command(socket, name, new))


@app.command()
def port(
    name: Name,
    inside: Annotated[str, typer.Argument(help="Only this one, PORT[/udp].", show_default=False)] = "",
    socket: Socket = "",
) -> None:
    """The ports of this machine that lead into a pod."""
    from orlop.cli import containers, session

    session.run_async(lambda: containers.port_command(socket, name, inside))


@app.command()
def export(
    name: Name,
    file: Annotated[str, typer.Option("--output", "-o", help="A file, or stdout.")] = "-",
    quiet: Quiet = False,
    socket: Socket = "",
) -> None:
    """Write the files of a container, without its volumes, to a tar archive. Its pod must run."""
    from orlop.cli import archives, session

    session.run_async(lambda: archives.export_command(socket, file, name, quiet))


@app.command()
def commit(
    container: Name,
    image: Annotated[str, typer.Argument(help="What the image is called.", show_default=False)] = "",
    change: Annotated[
        Many, typer.Option("--change", "-c", help="A line of a Dockerfile, for example 'CMD [\"sh\"]'.")
    ] = None,
    author: Annotated[str, typer.Option("--author", "-a", help="Who made it.", show_default=False)] = "",
    message: Annotated[str, typer.Option("--message", "-m", help="What for.", show_default=False)] = "",
    socket: Socket = "",
) -> None:
    """Make an image of a container: its image, and what it has changed in that. Its pod must run."""
    from orlop.cli import archives, session

    made = archives.Made(change or (), author, message)
    session.run_async(lambda: archives.commit_command(socket, container, image, made))
