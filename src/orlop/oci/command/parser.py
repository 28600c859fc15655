"""The command line, with the options that callers of runc pass."""

from __future__ import annotations

import argparse

from orlop.errors import InvalidArgument

# The name tells type checkers: importing typing would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Fill = Callable[[argparse.ArgumentParser], None]

ROOT = "/run/orlop-oci"
"""What ``--root`` is unless it is given: each root has containers of its own."""

LOCAL = "/run/orlop"
"""Where the daemon's socket is unless ``--state`` or ORLOP_STATE says otherwise."""

_WIDTH = 100


class _Formatter(argparse.HelpFormatter):
    """One that does not look how wide the terminal is: argparse makes one for each option, shown or not."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidArgument(f"{message} (see '{self.prog} --help')")


def parse(arguments: list[str]) -> argparse.Namespace:
    """What was asked for. Raises InvalidArgument; ends the program after --help."""
    parser = _Parser(
        prog="orlop-oci",
        allow_abbrev=False,
        description="Runs containers of the OCI runtime specification in virtual machines, by orlopd.",
        formatter_class=_Formatter,
    )
    _globals(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=_Parser)
    # Every call would pay for the options of all commands: only those are made that may be meant.
    meant = [name for name in _VERBS if name in arguments]
    if not meant or not {"-h", "--help"}.isdisjoint(arguments):
        meant = list(_VERBS)
    for name in meant:
        text, fill = _VERBS[name]
        shown: dict[str, Any] = {"help": text} if text else {}
        made = verbs.add_parser(name, allow_abbrev=False, formatter_class=_Formatter, **shown)
        if name not in _OF_NONE:
            made.add_argument("id", metavar="CONTAINER")
        if fill is not None:
            fill(made)
    return parser.parse_args(arguments)


def _globals(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", "-v", action="store_true", help="show the version")
    parser.add_argument("--root", default=ROOT, help="whose containers: each root has its own")
    parser.add_argument("--state", default="", help="the daemon's state directory, ORLOP_STATE or /run/orlop")
    parser.add_argument("--log", default="", help="a file for what goes wrong")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--systemd-cgroup", action="store_true", help="control groups are named as systemd's")
    for name in ("--debug", "--no-color"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    for name in ("--rootless", "--criu", "--cgroup-manager", "--log-level"):
        parser.add_argument(name, help=argparse.SUPPRESS)


def _making(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", "-b", default="", help="the bundle's directory; the current one")
    parser.add_argument("--console-socket", default="", help="who gets the terminal")
    parser.add_argument("--pid-file", default="", help="where to write the process that stands in for it")
    parser.add_argument("--preserve-fds", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--pidfd-socket", default="", help=argparse.SUPPRESS)
    for name in ("--no-pivot", "--no-new-keyring"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)


def _run(parser: argparse.ArgumentParser) -> None:
    _making(parser)
    parser.add_argument("--detach", "-d", action="store_true", help="do not wait for its end")
    parser.add_argument("--keep", action="store_true", help="do not remove it at its end")
    parser.add_argument("--no-subreaper", action="store_true", help=argparse.SUPPRESS)


def _kill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("signal", nargs="?", default="SIGTERM")
    parser.add_argument("--all", "-a", action="store_true", help=argparse.SUPPRESS)


def _delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", "-f", action="store_true", help="kill it first if it runs")


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", "-f", choices=("table", "json"), default="table")
    parser.add_argument("--quiet", "-q", action="store_true", help="their ids only")


def _ps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", "-f", choices=("table", "json"), default="table")
    parser.add_argument("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def _events(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stats", action="store_true", help="once")
    parser.add_argument("--interval", default="5s", help="time between two looks")


def _spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", "-b", default="", help="where")
    parser.add_argument("--rootless", action="store_true", help=argparse.SUPPRESS)


def _refused(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rest", nargs=argparse.REMAINDER)


def _exec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--process", "-p", default="", help="a file with the process as a document")
    parser.add_argument("--detach", "-d", action="store_true", help="do not wait for its end")
    parser.add_argument("--pid-file", default="", help="where to write the process that stands in for it")
    parser.add_argument("--console-socket", default="", help="who gets the terminal")
    parser.add_argument("--tty", "-t", action="store_true", help="with a terminal")
    parser.add_argument("--cwd", default="", help="its directory")
    parser.add_argument("--env", "-e", action="append", default=[], help="one more variable")
    parser.add_argument("--user", "-u", default="", help="UID[:GID]")
    parser.add_argument("--additional-gids", "-g", action="append", type=int, default=[])
    parser.add_argument("--preserve-fds", type=int, default=0, help=argparse.SUPPRESS)
    for name in ("--process-label", "--apparmor", "--cap", "-c", "--cgroup", "--pidfd-socket"):
        parser.add_argument(name, action="append", help=argparse.SUPPRESS)
    for name in ("--no-new-privs", "--ignore-paused"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="COMMAND")


LIMITS = {
    "--memory": ("memory", "limit"),
    "--memory-swap": ("memory", "swap"),
    "--cpu-period": ("cpu", "period"),
    "--cpu-quota": ("cpu", "quota"),
    "--cpu-share": ("cpu", "shares"),
    "--pids-limit": ("pids", "limit"),
}
"""Options of ``update`` that are numbers, and where they are in the document."""


def _update(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resources", "-r", default="", help="a file with the limits, - for stdin")
    for name in LIMITS:
        parser.add_argument(name, type=int)
    parser.add_argument("--cpuset-cpus")
    parser.add_argument("--cpuset-mems")


_VERBS: dict[str, tuple[str, Fill | None]] = {
    "create": ("make a container of a bundle", _making),
    "run": ("make a container and run it", _run),
    "start": ("run the process of a container that was made", None),
    "state": ("show the state of a container", None),
    "kill": ("send a signal to a container", _kill),
    "delete": ("remove a container", _delete),
    "list": ("show all containers", _list),
    "ps": ("show the processes of the host that are the container's", _ps),
    "exec": ("run one more process in a container", _exec),
    "update": ("change the limits of a container", _update),
    "events": ("show what a container uses", _events),
    "features": ("show what this runtime can do", None),
    "spec": ("write a config.json to begin with", _spec),
    "pause": ("stop the processes of a container where they are", None),
    "resume": ("let the processes of a paused container go on", None),
    "checkpoint": ("", _refused),
    "restore": ("", _refused),
}
"""What each command is for, "" for one that is not shown, and its own options."""

_OF_NONE = ("list", "features", "spec")
"""Those that are not about one container."""
