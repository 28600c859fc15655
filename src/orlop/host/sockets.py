"""A Unix socket at a path that others know: nobody sees it with the wrong permissions, or in two hands.

It is bound aside and renamed. So one that nobody serves any more is replaced without a moment in which
there is none, and no file that another thread makes meanwhile gets a mode that was meant for the socket.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

from orlop.errors import FailedPrecondition
from orlop.host import threads

Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]

_PROBE_TIME = 2.0


def prepare(path: Path, *, directory_mode: int = 0o755) -> Path:
    """Make the directory of ``path``; where to bind the socket, for :func:`publish`.

    Waits for at most two seconds. Raises FailedPrecondition when somebody listens there or something else
    than a socket is there, OSError.
    """
    path.parent.mkdir(mode=directory_mode, parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.new")
    aside.unlink(missing_ok=True)
    if not path.exists():
        return aside
    if not path.is_socket():
        raise FailedPrecondition(f"socket {path}: something else is there; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIME)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return aside
        except TimeoutError:
            pass
    raise FailedPrecondition(f"socket {path}: another daemon listens on it; stop that one first")


async def listen(path: Path, accept: Accept, *, mode: int, directory_mode: int = 0o755) -> asyncio.Server:
    """A server at ``path``; who stops it removes the file. Raises FailedPrecondition."""
    try:
        aside = await threads.call(prepare, path, directory_mode=directory_mode)
        server = await asyncio.start_unix_server(accept, os.fspath(aside))
        publish(aside, path, mode)
    except OSError as error:
        raise FailedPrecondition(f"cannot listen on {path}: {error.strerror or error}") from error
    return server


def publish(aside: Path, path: Path, mode: int) -> None:
    """Give the socket that was bound ``aside`` its permissions and its name. Raises OSError."""
    aside.chmod(mode)
    aside.rename(path)
