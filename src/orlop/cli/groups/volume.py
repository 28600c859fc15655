"""``orlop volume``: named volumes, the same that a cluster gets by CSI."""

from __future__ import annotations

from typing import Annotated

import typer

from orlop.cli.parameters import FormatText, Json, Quiet, Socket

app = typer.Typer(
    rich_markup_mode=None,
    help="Disks with a name that outlive the pods which use them (`orlop run -v NAME:/PATH`).",
    no_args_is_help=True,
)
VolumeName = Annotated[str, typer.Argument(help="The volume.", show_default=False)]
Size = Annotated[str, typer.Option("--size", "-s", help="For example 10g; it takes what is written to it.")]


@app.command()
def create(
    name: VolumeName,
    size: Size = "10g",
    *,
    vm: Annotated[bool, typer.Option("--vm", help="A disk for one VM at a time.")] = False,
    source: Annotated[str, typer.Option("--from", help="Begin as a copy of this volume.")] = "",
    socket: Socket = "",
) -> None:
    """Make a volume."""
    from orlop.cli import session, volumes

    session.run_async(lambda: volumes.create_command(socket, name, size, vm=vm, source=source))


@app.command()
def ls(
    snapshots: Annotated[bool, typer.Option("--snapshots", help="Snapshots, not volumes.")] = False,
    *,
    quiet: Quiet = False,
    format: FormatText = "",  # noqa: A002 - the option's name
    as_json: Json = False,
    socket: Socket = "",
) -> None:
    """List volumes."""
    from orlop.cli import formats, session, volumes

    printer = formats.Printer(volumes.SNAPSHOTS if snapshots else volumes.SHAPE, format)
    session.run_async(
        lambda: volumes.list_command(socket, printer, snapshots=snapshots, quiet=quiet, as_json=as_json)
    )


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(help="The volumes.", show_default=False)],
    snapshot: Annotated[bool, typer.Option("--snapshot", help="They are snapshots.")] = False,
    socket: Socket = "",
) -> None:
    """Remove volumes with all that is in them; not those that a pod uses."""
    from orlop.cli import session, volumes

    session.run_async(lambda: volumes.remove_command(socket, names, snapshot=snapshot))


@app.command()
def inspect(name: VolumeName, socket: Socket = "") -> None:
    """A volume and its snapshots, as JSON."""
    from orlop.cli import session, volumes

    session.run_async(lambda: volumes.inspect_command(socket, name))


@app.command()
def grow(
    name: VolumeName,
    size: Annotated[str, typer.Argument(help="Its new size, for example 20g.", show_default=False)],
    socket: Socket = "",
) -> None:
    """Make a volume larger, also while it is used; a VM sees it when its pod starts again."""
    from orlop.cli import session, volumes

    session.run_async(lambda: volumes.grow_command(socket, name, size))


@app.command()
def snapshot(
    volume: VolumeName,
    name: Annotated[str, typer.Argument(help="Of the snapshot.", show_default=False)],
    socket: Socket = "",
) -> None:
    """Keep what a volume is now."""
    from orlop.cli import session, volumes

    session.run_async(lambda: volumes.snapshot_command(socket, volume, name))


@app.command()
def restore(
    snapshot: Annotated[str, typer.Argument(help="The snapshot.", show_default=False)],
    volume: Annotated[str, typer.Argument(help="The volume to make of it.", show_default=False)],
    socket: Socket = "",
) -> None:
    """Make a volume that is what a snapshot kept."""
    from orlop.cli import session, volumes

    session.run_async(lambda: volumes.restore_command(socket, snapshot, volume))
