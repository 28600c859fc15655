"""The options that callers of runc pass, and a reader for command lines that are as they should be.

Nearly all are: callers are programs. A command line that has anything else about it, a question for help
or an option that is not known, goes to :mod:`orlop.oci.command.parser`, whose import takes longer than all
else that a call does.
"""

from __future__ import annotations

# The name tells type checkers: importing typing would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROOT = "/run/orlop-oci"
"""What ``--root`` is unless it is given: each root has containers of its own."""

LOCAL = "/run/orlop"
"""Where the daemon's socket is unless ``--state`` or ORLOP_STATE says otherwise."""

SWITCH, TEXT, NUMBER, TEXTS, NUMBERS = range(5)
"""Kinds of options: those without a value, with one, and with one each time that they are given."""


class Options:
    """What was asked for: ``verb``, ``id``, and the values of options by their names."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...


class Option:
    """One option. What has no ``text`` is not shown, and mostly without effect in a VM."""

    def __init__(
        self,
        *names: str,
        kind: int = TEXT,
        text: str = "",
        default: object = "",
        choices: tuple[str, ...] = (),
    ) -> None:
        self.names = names
        self.kind = kind
        self.text = text
        self.choices = choices
        self._default = default

    @property
    def place(self) -> str:
        """Its name among what was asked for."""
        return self.names[0].lstrip("-").replace("-", "_")

    def default(self) -> object:
        """What it is unless it is given."""
        if self.kind in (TEXTS, NUMBERS):
            return []
        return False if self.kind == SWITCH else self._default


def _switches(*names: str) -> tuple[Option, ...]:
    return tuple(Option(name, kind=SWITCH) for name in names)


GLOBAL = (
    Option("--version", "-v", kind=SWITCH, text="show the version"),
    Option("--root", default=ROOT, text="whose containers: each root has its own"),
    Option("--state", text="the daemon's state directory, ORLOP_STATE or /run/orlop"),
    Option("--log", text="a file for what goes wrong"),
    Option("--log-format", choices=("text", "json"), default="text", text="how it is written"),
    Option("--systemd-cgroup", kind=SWITCH, text="control groups are named as systemd's"),
    *_switches("--debug", "--no-color"),
    *(Option(name) for name in ("--rootless", "--criu", "--cgroup-manager", "--log-level")),
)

_BUNDLE = Option("--bundle", "-b", text="the bundle's directory; the current one")
_CONSOLE = Option("--console-socket", text="who gets the terminal")
_PID_FILE = Option("--pid-file", text="where to write the process that stands in for it")
_DETACH = Option("--detach", "-d", kind=SWITCH, text="do not wait for its end")
_OF_THE_HOST = (Option("--preserve-fds", kind=NUMBER, default=0), Option("--pidfd-socket"))
_MAKING = (_BUNDLE, _CONSOLE, _PID_FILE, *_OF_THE_HOST, *_switches("--no-pivot", "--no-new-keyring"))
_TABLE = Option("--format", "-f", choices=("table", "json"), default="table", text="how to show it")

LIMITS = {
    "--memory": ("memory", "limit"),
    "--memory-swap": ("memory", "swap"),
    "--cpu-period": ("cpu", "period"),
    "--cpu-quota": ("cpu", "quota"),
    "--cpu-share": ("cpu", "shares"),
    "--pids-limit": ("pids", "limit"),
}
"""Options of ``update`` that are numbers, and where they are in the document."""


class Verb:
    """A command: what it is for, "" for one that is not shown, and its options.

    After the container's id, of those that are about one, comes ``more``, which may be left out, or ``rest``,
    which is all that follows, whatever it looks like.
    """

    def __init__(
        self,
        text: str,
        *options: Option,
        of_one: bool = True,
        more: tuple[str, str] | None = None,
        rest: str = "",
    ) -> None:
        self.text = text
        self.options = options
        self.of_one = of_one
        self.more = more
        self.rest = rest


VERBS = {
    "create": Verb("make a container of a bundle", *_MAKING),
    "run": Verb(
        "make a container and run it",
        *_MAKING,
        _DETACH,
        Option("--keep", kind=SWITCH, text="do not remove it at its end"),
        *_switches("--no-subreaper"),
    ),
    "start": Verb("run the process of a container that was made"),
    "state": Verb("show the state of a container"),
    "kill": Verb(
        "send a signal to a container", Option("--all", "-a", kind=SWITCH), more=("signal", "SIGTERM")
    ),
    "delete": Verb(
        "remove a container", Option("--force", "-f", kind=SWITCH, text="kill it first if it runs")
    ),
    "list": Verb(
        "show all containers",
        _TABLE,
        Option("--quiet", "-q", kind=SWITCH, text="their ids only"),
        of_one=False,
    ),
    "ps": Verb("show the processes of the host that are the container's", _TABLE, rest="options"),
    "exec": Verb(
        "run one more process in a container",
        Option("--process", "-p", text="a file with the process as a document"),
        _DETACH,
        _PID_FILE,
        _CONSOLE,
        Option("--tty", "-t", kind=SWITCH, text="with a terminal"),
        Option("--cwd", text="its directory"),
        Option("--env", "-e", kind=TEXTS, text="one more variable"),
        Option("--user", "-u", text="UID[:GID]"),
        Option("--additional-gids", "-g", kind=NUMBERS, text="one more group"),
        *_OF_THE_HOST,
        *(Option(name, kind=TEXTS) for name in ("--process-label", "--apparmor", "--cgroup")),
        Option("--cap", "-c", kind=TEXTS),
        *_switches("--no-new-privs", "--ignore-paused"),
        rest="args",
    ),
    "update": Verb(
        "change the limits of a container",
        Option("--resources", "-r", text="a file with the limits, - for stdin"),
        *(Option(name, kind=NUMBER, default=None, text="a limit") for name in LIMITS),
        *(Option(name, default=None, text="a set, as 0-3") for name in ("--cpuset-cpus", "--cpuset-mems")),
    ),
    "events": Verb(
        "show what a container uses",
        Option("--stats", kind=SWITCH, text="once"),
        Option("--interval", default="5s", text="time between two looks"),
    ),
    "features": Verb("show what this runtime can do", of_one=False),
    "spec": Verb(
        "write a config.json to begin with",
        Option("--bundle", "-b", text="where"),
        *_switches("--rootless"),
        of_one=False,
    ),
    "pause": Verb("stop the processes of a container where they are"),
    "resume": Verb("let the processes of a paused container go on"),
    "checkpoint": Verb("", rest="rest"),
    "restore": Verb("", rest="rest"),
}


def read(arguments: list[str]) -> Options | None:
    """What was asked for; None for a command line that is not plain, which is not to say wrong."""
    words, found = list(arguments), Options()
    _unless_given(GLOBAL, found)
    if "--" in words or not _take(words, GLOBAL, found) or not words or words[0] not in VERBS:
        return None
    found.verb = words.pop(0)
    verb = VERBS[found.verb]
    _unless_given(verb.options, found)
    if not _take(words, verb.options, found):
        return None
    if verb.of_one:
        if not words:
            return None
        found.id = words.pop(0)
    if verb.rest:
        setattr(found, verb.rest, words)
        return found
    if verb.more is not None:
        name, default = verb.more
        own = bool(words) and not words[0].startswith("-")
        setattr(found, name, words.pop(0) if own else default)
    # Options may come last as well.
    return found if _take(words, verb.options, found) and not words else None


def _unless_given(options: tuple[Option, ...], found: Options) -> None:
    for option in options:
        setattr(found, option.place, option.default())


def _take(words: list[str], options: tuple[Option, ...], found: Options) -> bool:
    """Take the options off the front of ``words``; whether all of them are plain."""
    known = {name: option for option in options for name in option.names}
    while words and words[0].startswith("-"):
        name, sign, value = words.pop(0).partition("=")
        option = known.get(name)
        if option is None or (sign and (option.kind == SWITCH or not name.startswith("--") or not value)):
            return False
        if option.kind == SWITCH:
            setattr(found, option.place, True)
            continue
        if not sign:
            if not words or (words[0].startswith("-") and words[0] != "-"):
                return False
            value = words.pop(0)
        if not _put(option, value, found):
            return False
    return True


def _put(option: Option, value: str, found: Options) -> bool:
    """Whether the value is one of its kind."""
    if option.choices and value not in option.choices:
        return False
    if option.kind in (NUMBER, NUMBERS):
        if not (value.isascii() and value.isdecimal()):
            return False
        number = int(value)
        if option.kind == NUMBER:
            setattr(found, option.place, number)
        else:
            getattr(found, option.place).append(number)
    elif option.kind == TEXTS:
        getattr(found, option.place).append(value)
    else:
        setattr(found, option.place, value)
    return True
