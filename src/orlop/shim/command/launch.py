"""Starting a keeper: once on a node, so what is imported here is imported by none of the other calls."""

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
from orlop.host import detached
from orlop.shim import places
from orlop.shim.command.call import CALL_TIME, absent

_BACKLOG = 1024
_ANSWER = 16
_KEEPER = "import sys; sys.path.append({root!r}); from orlop.shim.command.keeper import main; main({state!r})"


def keeper(state: Path, namespace: str, path: Path) -> None:
    """Have one listen for a namespace at ``path``, unless another has just done so.

    Raises Unavailable, OSError.
    """
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
            link.settimeout(CALL_TIME)
            link.connect(os.fspath(state / places.HOLD_SOCKET))
            note = json.dumps({"verb": "serve", "key": namespace}).encode()
            socket.send_fds(link, [note], [serving.fileno()])
            link.recv(_ANSWER)


def _start_keeper(state: Path) -> None:
    if not _answers(state / places.DAEMON_SOCKET):
        # A keeper waits for a daemon that is coming back, not for one that never was.
        raise absent(state)
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
    aside = path.with_name(f"{path.name}{places.ASIDE}")
    aside.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as listener:
        listener.bind(os.fspath(aside))
        aside.chmod(0o600)
        listener.listen(_BACKLOG)
        aside.rename(path)
        yield listener
