"""A connection to the keeper, which is started if there is none."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orlop
from orlop.errors import InvalidArgument, Unavailable
from orlop.host import detached
from orlop.shim import places

_LONGEST_PATH = 107
_CALL_TIME = 120.0
_BACKLOG = 1024
_ASIDE = ".new"
_ANSWER = 16
_KEEPER = "import sys; sys.path.append({root!r}); from orlop.shim.command.keeper import main; main({state!r})"


@contextmanager
def connected(state: Path, namespace: str) -> Iterator[socket.socket]:
    """A connection to the daemon by way of the keeper. Raises Unavailable, InvalidArgument."""
    path = os.fspath(address(state, namespace))
    if len(os.fsencode(path)) + len(_ASIDE) > _LONGEST_PATH:
        raise InvalidArgument(f"{path} is too long for the path of a socket: use shorter names")
    with _kept(state), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
        link.settimeout(_CALL_TIME)
        try:
            link.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            _start(state, namespace)
            link.connect(path)
        yield link


def address(state: Path, namespace: str) -> Path:
    """Where the shims of a namespace are. Raises InvalidArgument."""
    if not namespace or "/" in namespace or "\0" in namespace:
        raise InvalidArgument(f"{namespace[:80]!r} is not a namespace of containerd's")
    return state / places.SOCKET.format(namespace=namespace)


@contextmanager
def _kept(state: Path) -> Iterator[None]:
    """No keeper ends until the block does."""
    try:
        lock = os.open(state / places.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _absent(state) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def _absent(state: Path) -> Unavailable:
    return Unavailable(
        f"no orlopd listens at {state / places.DAEMON_SOCKET}: start it with 'systemctl start orlopd', "
        "or run 'orlopd' in the foreground"
    )


def _start(state: Path, namespace: str) -> None:
    """Have a keeper listen for a namespace, unless another has just done so."""
    path = address(state, namespace)
    with (state / places.START_LOCK).open("a", encoding="utf-8") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if _answers(path):
            return
        if not _answers(state / places.HOLD_SOCKET, socket.SOCK_SEQPACKET):
            _start_keeper(state)
        with (
            _listening(path, socket.SOCK_STREAM) as serving,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as link,
        ):
            link.settimeout(_CALL_TIME)
            link.connect(os.fspath(state / places.HOLD_SOCKET))
            note = json.dumps({"verb": "serve", "key": namespace}).encode()
            socket.send_fds(link, [note], [serving.fileno()])
            link.recv(_ANSWER)


def _start_keeper(state: Path) -> None:
    if not _answers(state / places.DAEMON_SOCKET):
        # A keeper waits for a daemon that is coming back, not for one that never was.
        raise _absent(state)
    with _listening(state / places.HOLD_SOCKET, socket.SOCK_SEQPACKET) as holding:
        root = Path(orlop.__file__).resolve().parent.parent
        code = _KEEPER.format(root=os.fspath(root), state=os.fspath(state.absolute()))
        detached.start([sys.executable, "-I", "-S", "-c", code], os.fspath(state), (holding.fileno(),))


def _answers(path: Path, kind: int = socket.SOCK_STREAM) -> bool:
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


@contextmanager
def _listening(path: Path, kind: int) -> Iterator[socket.socket]:
    aside = path.with_name(f"{path.name}{_ASIDE}")
    aside.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as listener:
        listener.bind(os.fspath(aside))
        aside.chmod(0o600)
        listener.listen(_BACKLOG)
        aside.rename(path)
        yield listener
