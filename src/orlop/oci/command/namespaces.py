"""The namespaces that a document names by path: looked at by the caller, for whom /proc/self is its own."""

from __future__ import annotations

import fcntl
import os

from orlop.errors import FailedPrecondition, InvalidArgument

# The name tells type checkers: importing typing would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NS_GET_NSTYPE = 0xB703
_KINDS = {
    "mount": (0x00020000, "mnt"),
    "cgroup": (0x02000000, "cgroup"),
    "uts": (0x04000000, "uts"),
    "ipc": (0x08000000, "ipc"),
    "user": (0x10000000, "user"),
    "pid": (0x20000000, "pid"),
    "network": (0x40000000, "net"),
    "time": (0x00000080, "time"),
}
"""By their names in a document: the kernel's number, and the name below /proc/PID/ns."""

_NEVER_SHARED = ("mount", "ipc", "pid")


def check(config: dict[str, Any]) -> str:
    """Look at all of them; the path of the network namespace, "" for a new one.

    Raises FailedPrecondition for one that is the host's own, InvalidArgument for one of another kind.
    """
    network: str | None = None
    for namespace in (config.get("linux") or {}).get("namespaces") or ():
        kind, path = str(namespace.get("type")), str(namespace.get("path") or "")
        if kind == "network":
            network = path
        if path and kind in _KINDS:
            _look(kind, path)
    if network is None:
        raise FailedPrecondition("it asks for the host's network namespace, which a VM does not share")
    return network


def _look(kind: str, path: str) -> None:
    number, name = _KINDS[kind]
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(
            f"namespace {kind}: open {path}: {(error.strerror or '').lower()}"
        ) from error
    try:
        found, here = os.fstat(descriptor), os.stat(f"/proc/self/ns/{name}")
        actual = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
    except OSError as error:
        raise InvalidArgument(f"namespace {kind}: {path} is not a namespace") from error
    finally:
        os.close(descriptor)
    if actual != number:
        raise InvalidArgument(f"namespace {kind}: {path} is a namespace of another kind")
    if kind not in _NEVER_SHARED or _is_of_a_process(path):
        return
    if (found.st_dev, found.st_ino) == (here.st_dev, here.st_ino):
        raise FailedPrecondition(
            f"it asks for the host's {kind} namespace, which a VM does not share: {path} is that one"
        )


def _is_of_a_process(path: str) -> bool:
    """The daemon knows whether such a process stands in for a container, and not in namespaces of its own."""
    parts = path.split("/")
    if len(parts) != 5 or (parts[0], parts[1], parts[3]) != ("", "proc", "ns"):
        return False
    return parts[2].isdecimal() and parts[4].isidentifier()
