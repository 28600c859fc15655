"""Namespaces without a process in them: made by a thread, kept alive by a bind mount.

A thread unshares, its ``/proc/thread-self/ns`` entries are bind-mounted to files, and the thread
ends. Nothing is spawned, and no thread of the daemon stays in a foreign namespace.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from orlop.errors import InvalidArgument, NotFound
from orlop.host import mounts, process, threads
from orlop.linux import syscalls as sys

T = TypeVar("T")

KINDS = {"net": sys.CLONE_NEWNET, "ipc": sys.CLONE_NEWIPC, "uts": sys.CLONE_NEWUTS, "pid": sys.CLONE_NEWPID}

_SIOCSIFFLAGS = 0x8914
_NS_GET_NSTYPE = 0xB703
_IFF_UP = 1


async def create(
    paths: Mapping[str, Path], *, hostname: str = "", first: Sequence[str] = (), cwd: Path | None = None
) -> process.Detached | None:
    """Make a new namespace for each kind ("net", "ipc", "uts", "pid") and pin it at the path given.

    ``hostname`` is set in a new UTS namespace; a new network namespace has its loopback up. A PID
    namespace needs a first process, which is the command ``first`` in the directory ``cwd``; it is
    returned. A failure or cancellation leaves nothing behind. Raises OSError.
    """
    made: list[Path] = []
    started: list[subprocess.Popen[bytes]] = []

    def make() -> None:
        try:
            for path in paths.values():
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
                made.append(path)
            sys.unshare(sum(KINDS[kind] for kind in paths))
            if hostname and "uts" in paths:
                socket.sethostname(hostname)
            if "net" in paths:
                _loopback_up()
            if "pid" in paths:
                # A child of this very thread, which alone makes its children in the new namespace.
                started.append(process.popen(first, cwd))
            for kind, path in paths.items():
                own = "pid_for_children" if kind == "pid" else kind
                sys.mount(f"/proc/thread-self/ns/{own}", path, "", sys.MS_BIND)
        except BaseException:
            undo()
            raise

    def undo(unwanted: None = None) -> None:
        for child in started:
            child.kill()
            child.wait()
        for path in made:
            with suppress(OSError):
                remove(path)

    await threads.in_own_thread(make, name="orlop-unshare", unwanted=undo)
    return process.Detached(started[0]) if started else None


def _loopback_up() -> None:
    request = struct.pack("16sH14x", b"lo", _IFF_UP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, request)


async def prepare(paths: Mapping[str, Path], *, hostname: str = "") -> None:
    """Do for namespaces that another process made what :func:`create` does: loopback, host name."""

    def body() -> None:
        if hostname and "uts" in paths:
            socket.sethostname(hostname)
        if "net" in paths:
            _loopback_up()

    await within(paths, body)


async def pin(source: Path, path: Path, kind: str) -> None:
    """Pin a namespace that is there, ``source``, at ``path`` as well.

    Raises NotFound when there is no ``source``, InvalidArgument when it is no namespace of that kind.
    """
    await threads.call(_pin, source, path, kind)


def _pin(source: Path, path: Path, kind: str) -> None:
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"the {kind} namespace {source} does not exist") from error
    try:
        if _type_of(descriptor) != KINDS[kind]:
            raise InvalidArgument(f"{source} is no {kind} namespace")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o444)
        sys.mount(f"/proc/self/fd/{descriptor}", path, "", sys.MS_BIND)
    finally:
        os.close(descriptor)


def _type_of(descriptor: int) -> int:
    try:
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
    except OSError:
        return 0


def remove(path: Path) -> None:
    """Unpin the namespace at ``path``. Idempotent. Raises OSError."""
    mounts.unmount(path)
    with suppress(FileNotFoundError):
        path.unlink()


async def within(
    paths: Mapping[str, Path], function: Callable[[], T], *, unwanted: Callable[[T], object] | None = None
) -> T:
    """Run a short ``function`` on a thread of its own inside the namespaces given, by kind.

    ``unwanted`` releases the result when the caller was cancelled meanwhile. Raises NotFound when a path
    does not exist, otherwise what ``function`` raises.
    """

    def body() -> T:
        for kind, path in paths.items():
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise NotFound(f"the {kind} namespace {path} does not exist") from error
            try:
                sys.setns(descriptor, KINDS[kind])
            finally:
                os.close(descriptor)
        return function()

    return await threads.in_own_thread(body, name="orlop-setns", unwanted=unwanted)
