"""What there is and what it does: lists, logs, figures."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from orlop.cli.parameters import (
    Filter,
    Format,
    FormatChoice,
    FormatText,
    Json,
    Name,
    Names,
    Quiet,
    ShortFormat,
    Socket,
    Some,
    Whole,
)

app = typer.Typer(rich_markup_mode=None)


DiffFormat = Annotated[
    str, typer.Option("--format", help="json: lists by what was done.", show_default=False)
]


class SortChoice(StrEnum):
    """What `ps --sort` takes."""

    created = "created"
    id = "id"
    image = "image"
    names = "names"
    runningfor = "runningfor"
    status = "status"


class KindChoice(StrEnum):
    """What `inspect --type` takes."""

    container = "container"
    pod = "pod"
    image = "image"
    all = "all"


class ConditionChoice(StrEnum):
    """What `wait --condition` takes."""

    stopped = "stopped"
    exited = "exited"
    running = "running"
    healthy = "healthy"
    unhealthy = "unhealthy"


@app.command()
def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that ended as well.")] = False,
    *,
    filter: Filter = None,  # noqa: A002 - the option's name
    sort: Annotated[SortChoice, typer.Option("--sort", help="By which field.")] = SortChoice.created,
    latest: Annotated[bool, typer.Option("--latest", "-l", help="The newest only, ended or not.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", help="The newest ones, ended or not.", min=0)] = 0,
    no_trunc: Whole = False,
    quiet: Quiet = False,
    format: FormatText = "",  # noqa: A002 - the option's name
    as_json: Json = False,
    socket: Socket = "",
) -> None:
    """List containers."""
    from orlop.cli import formats, session
    from orlop.cli import ps as listing

    wanted = listing.PsOptions(
        printer=formats.Printer(listing.SHAPE, format, whole=no_trunc),
        filters=listing.checked_filters(filter or ()),
        sort=sort.value,
        everything=everything,
        last=1 if latest else last,
        quiet=quiet,
        as_json=as_json,
    )
    session.run_async(lambda: listing.ps_command(socket, wanted))


@app.command()
def inspect(
    names: Names,
    format: ShortFormat = "",  # noqa: A002 - the option's name
    kind: Annotated[KindChoice, typer.Option("--type", "-t", help="What it is.")] = KindChoice.all,
    socket: Socket = "",
) -> None:
    """Everything about containers, pods or images, as JSON; with --format in podman's words."""
    from orlop.cli import formats, session
    from orlop.cli.inspecting import inspect_command

    formats.check(format)
    only = "" if kind is KindChoice.all else kind.value
    session.run_async(lambda: inspect_command(socket, names, only, format))


@app.command()
def diff(name: Name, format: DiffFormat = "", socket: Socket = "") -> None:  # noqa: A002
    """Files that a container has changed (C), added (A) or deleted (D) in its image, while its pod runs."""
    from orlop.cli import containers, session
    from orlop.cli.problems import CliError

    if format not in ("", "json"):
        raise CliError(f"--format {format}: diff has json, and lines of its own", exit_code=2)
    session.run_async(lambda: containers.diff_command(socket, name, as_json=format == "json"))


@app.command()
def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="When each line came.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", help="Only the last lines.", show_default=False)] = -1,
    *,
    since: Annotated[str, typer.Option("--since", help="A time, or how long ago, for example 10m.")] = "",
    until: Annotated[str, typer.Option("--until", help="The same.")] = "",
    socket: Socket = "",
) -> None:
    """Show what a container has written."""
    from orlop.cli import session, units
    from orlop.cli.logs import Excerpt, logs_command

    span = Excerpt(tail=tail, since=units.moment(since, 0.0), until=units.moment(until, float("inf")))
    session.run_async(lambda: logs_command(socket, name, span, follow=follow, timestamps=timestamps))


@app.command()
def wait(
    names: Names,
    condition: Annotated[
        ConditionChoice, typer.Option("--condition", help="For what to wait.")
    ] = ConditionChoice.stopped,
    socket: Socket = "",
) -> None:
    """Wait until containers have ended, and print their exit codes; -1 where that is not waited for."""
    from orlop.cli import containers, session

    ended = condition in (ConditionChoice.stopped, ConditionChoice.exited)
    wanted = "" if ended else condition.value
    session.run_async(lambda: containers.wait_command(socket, names, wanted))


@app.command()
def stats(
    names: Some = None,
    interval: Annotated[float, typer.Option("--interval", help="Seconds to measure over.", min=0.1)] = 1.0,
    format: FormatText = "",  # noqa: A002 - the option's name
    socket: Socket = "",
) -> None:
    """CPU, memory and disk of the running containers, or of some of them: one table."""
    from orlop.cli import formats, session
    from orlop.cli import stats as figures

    printer = formats.Printer(figures.SHAPE, format)
    session.run_async(lambda: figures.stats_command(socket, names or (), interval, printer))


@app.command()
def top(
    name: Annotated[
        str, typer.Argument(help="A container, whose processes are shown.", show_default=False)
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="One table, then the end.")] = False,
    interval: Annotated[float, typer.Option("--interval", help="Seconds to measure over.", min=0.1)] = 2.0,
    format: Format = FormatChoice.text,  # noqa: A002 - the option's name
    socket: Socket = "",
) -> None:
    """What pods use: processors, memory, disk, network; and the pool of VMs. Or a container's processes."""
    from orlop.cli import session
    from orlop.cli.observe.top import top_command
    from orlop.cli.processes import processes_command

    as_json = format is FormatChoice.json
    if name:
        session.run_async(lambda: processes_command(socket, name, as_json=as_json))
    else:
        session.run_async(lambda: top_command(socket, once=once, interval=interval, as_json=as_json))


@app.command()
def info(format: FormatText = "", as_json: Json = False, socket: Socket = "") -> None:  # noqa: A002
    """The same as `orlop system info`."""
    from orlop.cli import formats, session, system

    formats.check(format)
    session.run_async(lambda: system.info_command(socket, format, as_json))


@app.command()
def version(format: FormatText = "", socket: Socket = "") -> None:  # noqa: A002
    """The version of this command and of the running daemon."""
    from orlop.cli import formats, session
    from orlop.cli.version import version_command

    formats.check(format)
    session.run_async(lambda: version_command(socket, format))
