"""``containerd-shim-orlop-v2``: what containerd starts to get a shim, or to be rid of one.

Nothing stays behind that is a pod's own. All shims of a node have one address, the keeper's; so this command
sees that there is a keeper, tells the daemon of the task to come, and says that address.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from _json import encode_basestring_ascii as quoted

from orlop import __version__
from orlop.errors import InvalidArgument, OrlopError
from orlop.host.leaving import leave
from orlop.shim import places
from orlop.shim.command import protobuf, start
from orlop.shim.command.call import call

# The name tells type checkers: importing typing would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

NAME = "containerd-shim-orlop-v2"
EXIT_FAILED = 1
MOST_INPUT = 10 << 20
LOG_TIME = 0.5
"""Seconds that one who reads a shim's log may take to open it."""

VERSION_NEWEST = 3

_FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
_SWITCHES = ("debug", "info", "v", "version", "help", "h")
_OPTIONS = ("namespace", "address", "publish-binary", "id", "bundle", "socket", "debug-socket")
_PARAMS = {"id": 1, "namespace": 2, "version": 4, "events": 5}
"""Of BootstrapParams, which containerd 2.3 and later write to the standard input."""


class Given:
    """The command line, with the flags of Go: one dash or two, a value behind ``=`` or as the next word."""

    def __init__(self) -> None:
        self.action = ""
        self.options: dict[str, str] = {}

    def get(self, name: str, otherwise: str = "") -> str:
        """An option, "" when it was not given."""
        return self.options.get(name, otherwise)


def parsed(arguments: list[str]) -> Given:
    """Raises InvalidArgument."""
    given, words = Given(), list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            given.action = word
            break
        name, sign, value = word.lstrip("-").partition("=")
        if name in _SWITCHES:
            value = "true"
        elif name not in _OPTIONS:
            raise InvalidArgument(f"flag provided but not defined: -{name}")
        elif not sign:
            if not words:
                raise InvalidArgument(f"flag needs an argument: -{name}")
            value = words.pop(0)
        given.options[name] = value
    return given


def command() -> NoReturn:
    """The program."""
    leave(main())


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit status."""
    try:
        given = parsed(sys.argv[1:] if arguments is None else arguments)
        if given.get("v") or given.get("version"):
            sys.stdout.write(f"{NAME}:\n  Version:  {__version__}\n")
        elif given.get("info"):
            _write(_info())
        elif given.action == "start":
            _write(_start(given))
        elif given.action == "delete":
            _write(_delete(given))
        elif given.action == "features":  # as CRI-O asks each of its runtimes
            _write(_features())
        else:
            raise InvalidArgument(
                f"{given.action or 'nothing'} was asked for: containerd calls start or delete; "
                "name this command as its runtime io.containerd.orlop.v2"
            )
    except (OrlopError, ValueError) as error:
        sys.stderr.write(f"{NAME}: {error}\n")
        return EXIT_FAILED
    except OSError as error:
        sys.stderr.write(f"{NAME}: {error.filename or 'a file'}: {error.strerror or error}\n")
        return EXIT_FAILED
    return 0


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _state() -> str:
    return os.environ.get("ORLOP_STATE", "") or places.LOCAL


def _start(given: Given) -> bytes:
    params = _params()
    names = {
        "namespace": params.get(_PARAMS["namespace"], given.get("namespace")),
        "id": params.get(_PARAMS["id"], given.get("id")),
        "events": params.get(_PARAMS["events"], os.environ.get("TTRPC_ADDRESS", "")),
    }
    _check(names)
    asked = b"".join(protobuf.text(number, value) for number, value in enumerate(names.values(), 1))
    with start.KeeperConnection(_state(), names["namespace"]) as one:
        call(one.link, places.DOOR_SERVICE, "Register", asked)
    address = f"unix://{start.address(_state(), names['namespace'])}"
    _leave(address)
    _end_log()
    if _PARAMS["version"] in params:
        return protobuf.number(1, VERSION_NEWEST) + protobuf.text(2, address) + protobuf.text(3, "ttrpc")
    newest = os.environ.get("MAX_SHIM_VERSION", "")
    if newest.isdecimal() and int(newest) >= VERSION_NEWEST:
        said = f'{{"version": {VERSION_NEWEST}, "address": {quoted(address)}, "protocol": "ttrpc"}}'
        return said.encode()
    # All that know version 2 take an address alone for it, and CRI-O, which names that version, nothing else.
    return address.encode()


def _params() -> dict[int, str]:
    """What containerd 2.3 and later say on the standard input; nothing of what earlier ones do."""
    if sys.stdin is None or os.isatty(0):
        return {}
    return bootstrap(sys.stdin.buffer.read(MOST_INPUT))


def bootstrap(data: bytes) -> dict[int, str]:
    """The BootstrapParams in ``data`` by the numbers of their fields, nothing where it is something else."""
    try:
        params = protobuf.strings(data, _PARAMS.values())
    except ValueError:
        return {}
    # Earlier containerds write the runtime's options there, which have no fourth field.
    return params if _PARAMS["version"] in params and _PARAMS["id"] in params else {}


def _leave(address: str) -> None:
    """Where containerd 1.6 and CRI-O look for it after a restart: the bundle, in which this runs."""
    with open(".address", "w", encoding="utf-8") as aside:
        aside.write(address)
    os.rename(".address", "address")


def _end_log() -> None:
    """Say to who reads the log of this shim that there is none: a thread of his waits for a writer.

    He may be about to open it; without him there is nobody to tell.
    """
    limit = time.monotonic() + LOG_TIME
    while True:
        try:
            os.close(os.open("log", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW))
        except OSError as error:
            if error.errno == errno.ENXIO and time.monotonic() < limit:
                time.sleep(0.01)
                continue
        return


def _delete(given: Given) -> bytes:
    names = {"namespace": given.get("namespace"), "id": given.get("id")}
    _check(names)
    asked = b"".join(protobuf.text(number, value) for number, value in enumerate(names.values(), 1))
    with start.KeeperConnection(_state(), names["namespace"]) as one:
        return call(one.link, places.DOOR_SERVICE, "Clear", asked)


def _check(names: dict[str, str]) -> None:
    for name in ("namespace", "id"):
        if not names[name]:
            raise InvalidArgument(f"shim {name} cannot be empty")


def _info() -> bytes:
    """RuntimeInfo: the name, the version, and what the command ``orlop-oci features`` says."""
    features = protobuf.text(1, _FEATURES_TYPE) + protobuf.text(2, _features())
    version = protobuf.text(1, __version__)
    return protobuf.text(1, "io.containerd.orlop.v2") + protobuf.text(2, version) + protobuf.text(4, features)


def _features() -> bytes:
    import json

    from orlop.bundle.features import FEATURES

    return json.dumps(FEATURES).encode()


if __name__ == "__main__":
    command()
