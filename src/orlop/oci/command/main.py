"""``orlop-oci``: what callers of runc call. Each call is a question to the daemon."""

from __future__ import annotations

import os
import sys

from orlop import __version__
from orlop.errors import FailedPrecondition, InvalidArgument, OrlopError, Unimplemented
from orlop.host.leaving import leave
from orlop.oci import plainjson
from orlop.oci.command import options as plain
from orlop.oci.command.options import Options
from orlop.oci.protocol import SOCKET, ask

# The name tells type checkers: importing typing would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from orlop.oci.command.processes import Standing

EXIT_FAILED = 1
EXIT_EXEC_FAILED = 255
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def command() -> NoReturn:
    """The program."""
    leave(main())


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says. Returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if given in (["--version"], ["-v"]):
        from orlop.bundle.features import SPECIFICATION

        # Callers look for the first word, and for the version of the specification.
        sys.stdout.write(f"orlop-oci version {__version__}\nspec: {SPECIFICATION}\n")
        return 0
    options = Options()
    options.log, options.log_format, options.verb = (
        _value_of(given, "--log"),
        _value_of(given, "--log-format"),
        "",
    )
    try:
        options = plain.read(given) or _parsed(given)
        return _VERBS[options.verb](options)
    except OrlopError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'a file'}: {(error.strerror or str(error)).lower()}"
    except (ValueError, KeyError) as error:
        message = f"{type(error).__name__}: {error}"
    from orlop.oci.command import report

    report.problem(message, options.log, options.log_format)
    return EXIT_EXEC_FAILED if options.verb == "exec" else EXIT_FAILED


def _parsed(arguments: list[str]) -> Options:
    from orlop.oci.command import parser

    return parser.parse(arguments)


def _value_of(arguments: list[str], name: str) -> str:
    """An option of a command line that may be wrong elsewhere."""
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
        if argument == name and index + 1 < len(arguments):
            return arguments[index + 1]
    return ""


def _state(options: Options) -> str:
    return str(options.state or os.environ.get("ORLOP_STATE", "") or plain.LOCAL)


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _ask(options: Options, verb: str, **more: Any) -> Any:
    root = os.path.abspath(options.root)
    return ask(os.path.join(_state(options), SOCKET), verb, root=root, **more)


def _create(options: Options) -> int:
    _make(options, foreground=False)
    return 0


def _run(options: Options) -> int:
    standing = _make(options, foreground=not options.detach)
    try:
        _ask(options, "start", id=options.id)
    except OrlopError:
        _ask(options, "delete", id=options.id, force=True)
        raise
    if options.detach:
        return 0
    code = standing.wait()
    if not options.keep:
        _ask(options, "delete", id=options.id, force=True)
    return code


def _make(options: Options, *, foreground: bool) -> Standing:
    """Make the container and what stands in for it; a failure leaves neither."""
    from orlop.oci.command import namespaces, processes

    _check_descriptors(options)
    bundle = os.path.abspath(options.bundle or ".")
    text = _read(os.path.join(bundle, "config.json"))
    config = plainjson.read(text)
    if not isinstance(config, dict) or not isinstance(config.get("process"), dict):
        raise InvalidArgument("config.json: it names no process to run")
    standing = processes.stand(
        config["process"],
        _state(options),
        namespaces.check(config),
        console_socket=options.console_socket,
        foreground=foreground,
    )
    made = False
    try:
        _ask(
            options,
            "create",
            id=options.id,
            bundle=bundle,
            config=text,
            stand_in=standing.words(),
            systemd_cgroup=options.systemd_cgroup,
        )
        made = True
        processes.write_pid(options.pid_file, standing.pid)
    except BaseException:
        if made:
            _ask(options, "delete", id=options.id, force=True)
        standing.drop()
        raise
    return standing


def _check_descriptors(options: Options) -> None:
    if options.preserve_fds:
        raise FailedPrecondition("open descriptors cannot be handed into a VM: do without --preserve-fds")


def _start(options: Options) -> int:
    _ask(options, "start", id=options.id)
    return 0


def _tell(options: Options) -> int:
    _show(_ask(options, "state", id=options.id))
    return 0


def _kill(options: Options) -> int:
    _ask(options, "kill", id=options.id, signal=options.signal)
    return 0


def _pause(options: Options) -> int:
    _ask(options, "pause", id=options.id)
    return 0


def _resume(options: Options) -> int:
    _ask(options, "resume", id=options.id)
    return 0


def _delete(options: Options) -> int:
    _ask(options, "delete", id=options.id, force=options.force)
    return 0


def _list(options: Options) -> int:
    import json

    states = _ask(options, "states")
    if options.quiet:
        sys.stdout.write("".join(f"{state['id']}\n" for state in states))
    elif options.format == "json":
        sys.stdout.write(f"{json.dumps(states)}\n")
    else:
        _table(states)
    return 0


def _table(states: list[dict[str, Any]]) -> None:
    columns = ("id", "pid", "status", "bundle", "created")
    rows = [[name.upper() for name in columns], *([str(state[name]) for name in columns] for state in states)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    for row in rows:
        line = "   ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        sys.stdout.write(f"{line.rstrip()}\n")


def _ps(options: Options) -> int:
    import json

    pids = _ask(options, "members", id=options.id)
    if options.format == "json":
        sys.stdout.write(f"{json.dumps(pids)}\n")
    else:
        sys.stdout.write("".join(f"{pid}\n" for pid in ("PID", *pids)))
    return 0


def _exec(options: Options) -> int:
    from orlop.oci.command import processes

    _check_descriptors(options)
    state = _ask(options, "state", id=options.id)
    process = _process(options, state["bundle"])
    standing = processes.stand(
        process,
        _state(options),
        f"/proc/{state['pid']}/ns/net",
        console_socket=options.console_socket,
        foreground=not options.detach,
    )
    try:
        _ask(options, "exec", id=options.id, process=plainjson.written(process), stand_in=standing.words())
        processes.write_pid(options.pid_file, standing.pid)
    except BaseException:
        standing.drop()
        raise
    return 0 if options.detach else standing.wait()


def _process(options: Options, bundle: str) -> dict[str, Any]:
    """The process of an exec: the one in the file, or the container's own with other arguments."""
    if options.process:
        found = plainjson.read(_read(options.process))
    else:
        found = plainjson.read(_read(os.path.join(bundle, "config.json")))["process"]
        found |= {"args": [one for one in options.args if one != "--"], "terminal": options.tty}
        found["env"] = [*(found.get("env") or ()), *options.env]
        if options.cwd:
            found["cwd"] = options.cwd
        if options.user:
            uid, _, gid = options.user.partition(":")
            found["user"] = {"uid": int(uid), "gid": int(gid or 0), "additionalGids": options.additional_gids}
    if not isinstance(found, dict) or not found.get("args"):
        raise InvalidArgument("process args cannot be empty")
    return found


def _update(options: Options) -> int:
    if options.resources:
        text = sys.stdin.read() if options.resources == "-" else _read(options.resources)
    else:
        found: dict[str, dict[str, Any]] = {}
        words = {
            name: (*place, getattr(options, name[2:].replace("-", "_")))
            for name, place in plain.LIMITS.items()
        }
        words |= {"cpus": ("cpu", "cpus", options.cpuset_cpus), "mems": ("cpu", "mems", options.cpuset_mems)}
        for part, key, value in words.values():
            if value is not None:
                found.setdefault(part, {})[key] = value
        text = plainjson.written(found)
    _ask(options, "update", id=options.id, resources=text)
    return 0


def _events(options: Options) -> int:
    import json
    import time

    number = options.interval.rstrip("msh")
    pause = float(number) * _UNITS[options.interval[len(number) :] or "s"]
    while True:
        if not options.stats and _ask(options, "state", id=options.id)["status"] == "stopped":
            return 0
        data = _ask(options, "stats", id=options.id)
        sys.stdout.write(json.dumps({"type": "stats", "id": options.id, "data": data}) + "\n")
        sys.stdout.flush()
        if options.stats:
            return 0
        time.sleep(max(pause, 0.1))


def _features(_options: Options) -> int:
    from orlop.oci.command import templates

    _show(templates.FEATURES)
    return 0


def _spec(options: Options) -> int:
    import json

    from orlop.oci.command import templates

    place = os.path.join(options.bundle or ".", "config.json")
    try:
        with open(place, "x", encoding="utf-8") as file:
            file.write(json.dumps(templates.CONFIG, indent="\t") + "\n")
    except FileExistsError as error:
        raise FailedPrecondition(f"file {place} exists; remove it first") from error
    return 0


def _refused(options: Options) -> int:
    raise Unimplemented(f"orlop-oci does not {options.verb} containers")


def _show(document: Any) -> None:
    import json

    sys.stdout.write(json.dumps(document, indent=2) + "\n")


_VERBS: dict[str, Callable[[Options], int]] = {
    "create": _create,
    "run": _run,
    "start": _start,
    "state": _tell,
    "kill": _kill,
    "delete": _delete,
    "list": _list,
    "ps": _ps,
    "exec": _exec,
    "update": _update,
    "events": _events,
    "features": _features,
    "spec": _spec,
    "pause": _pause,
    "resume": _resume,
    "checkpoint": _refused,
    "restore": _refused,
}

if __name__ == "__main__":
    command()
