"""Loop devices: a file of the host as a block device. See loop(4).

A device holds the very open file that it was given, so a lock of flock(2) on that lasts as long as the
device does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_CLEAR = 0x4C01
_SET_CAPACITY = 0x4C07
_CONFIGURE = 0x4C0A
_GET_FREE = 0x4C82
_READ_ONLY = 1
_AUTOCLEAR = 4
# struct loop_config: descriptor, block size, then loop_info64, whose flags alone are set here.
_CONFIG = struct.Struct("=II 5Q 3I I 64s 64s 32s 2Q 8Q")
_BLOCKS = "/sys/block"
_TRIES = 64


def attach(file: int, *, read_only: bool = False, passing: bool = False) -> tuple[str, int]:
    """A free device with the open ``file``: its path, and a descriptor of it.

    With ``passing`` the device goes when nobody has it open or mounted any more. Raises OSError.
    """
    flags = (_READ_ONLY if read_only else 0) | (_AUTOCLEAR if passing else 0)
    config = _CONFIG.pack(file, 0, *[0] * 5, *[0] * 3, flags, b"", b"", b"", *[0] * 2, *[0] * 8)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            device = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else took it
                    raise
            else:
                return path, device
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device is free")


def devices_of(path: str) -> list[str]:
    """The devices that have the file of that absolute path, without symbolic links in it."""
    found = []
    for name in sorted(os.listdir(_BLOCKS)):
        if name.startswith("loop"):
            try:
                with open(f"{_BLOCKS}/{name}/loop/backing_file", encoding="utf-8", errors="replace") as file:
                    if file.read().rstrip("\n") == path:
                        found.append(f"/dev/{name}")
            except OSError:  # it has no file
                continue
    return found


def follow_size(device: str) -> None:
    """Give a device the size that its file has now. Raises OSError."""
    _command(device, _SET_CAPACITY)


def detach(device: str) -> None:
    """Take a device from its file, as soon as nobody uses it; one without a file is left. Raises OSError."""
    try:
        _command(device, _CLEAR)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENOENT):
            raise


def _command(device: str, number: int) -> None:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, number)
    finally:
        os.close(descriptor)
