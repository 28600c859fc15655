"""A connection to the keeper, which is started if there is none."""

from __future__ import annotations

import _socket as socket  # The one without the underscore first makes enumerations of all its constants.
import fcntl
import os

from orlop.errors import InvalidArgument
from orlop.shim import places
from orlop.shim.command.call import CALL_TIME, absent

# The name tells type checkers: importing typing would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_LONGEST_PATH = 107


class KeeperConnection:
    """Connected to the daemon by way of the keeper, for a ``with``; no keeper ends until it does.

    Raises Unavailable, InvalidArgument.
    """

    def __init__(self, state: str | os.PathLike[str], namespace: str) -> None:
        path = address(state, namespace)
        if len(os.fsencode(path)) + len(places.ASIDE) > _LONGEST_PATH:
            raise InvalidArgument(f"{path} is too long for the path of a socket: use shorter names")
        self._state = state
        self._namespace = namespace
        self._path = path
        self._lock = -1
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.link.settimeout(CALL_TIME)

    def __enter__(self) -> Self:
        try:
            self._lock = _locked(self._state)
            try:
                self.link.connect(self._path)
            except (FileNotFoundError, ConnectionRefusedError):
                self._start()
                self.link.connect(self._path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()
        if self._lock >= 0:
            os.close(self._lock)

    def _start(self) -> None:
        from pathlib import Path

        from orlop.shim.command import launch

        launch.keeper(Path(self._state), self._namespace, Path(self._path))


def address(state: str | os.PathLike[str], namespace: str) -> str:
    """Where the shims of a namespace are. Raises InvalidArgument."""
    if not namespace or "/" in namespace or "\0" in namespace:
        raise InvalidArgument(f"{namespace[:80]!r} is not a namespace of containerd's")
    return os.path.join(state, places.SOCKET.format(namespace=namespace))


def _locked(state: str | os.PathLike[str]) -> int:
    """A descriptor with which no keeper ends until it is closed."""
    try:
        lock = os.open(os.path.join(state, places.LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise absent(state) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    except BaseException:
        os.close(lock)
        raise
    return lock
