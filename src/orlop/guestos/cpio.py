"""Write a cpio archive in the ``newc`` format, which is what the kernel unpacks as its first root
(kernel documentation, driver-api/early-userspace/buffer-format). Always the same bytes for the same
input: no times, owners or inode numbers of the machine it is made on.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class CpioEntry:
    """One file. ``mode`` has the type bits; ``data`` is the content, or a symbolic link's target."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> CpioEntry:
    """A directory."""
    return CpioEntry(name, stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, *, executable: bool = False) -> CpioEntry:
    """A regular file."""
    return CpioEntry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)


def character_device(name: str, major: int, minor: int) -> CpioEntry:
    """A character device node."""
    return CpioEntry(name, stat.S_IFCHR | 0o600, b"", (major, minor))


def archive(entries: Iterable[CpioEntry]) -> bytes:
    """The archive of ``entries`` in their order; a directory has to come before what is in it."""
    out = bytearray()
    for number, entry in enumerate(entries, start=1):
        _append(out, number, entry)
    _append(out, 0, CpioEntry("TRAILER!!!", 0))
    out += bytes(-len(out) % 512)
    return bytes(out)


def _append(out: bytearray, inode: int, entry: CpioEntry) -> None:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    out += bytes(-len(out) % 4)
    out += entry.data
    out += bytes(-len(out) % 4)
