"""The host's directory: ``9p:TAG`` is a 9p device with that mount tag."""

from __future__ import annotations

from contextlib import suppress

from orlop.guest import paths
from orlop.linux import syscalls
from orlop.wire.messages import Refused

# From 6.4 on the kernel would keep in the guest what is read and written: the host sees a write late, and
# what it adds to a file that is open here reads as zeros. Directly, files are as they were before,
# which do not know the word: only what a program maps is kept.
_OPTIONS = "trans=virtio,version=9p2000.L,msize=262144,cache=mmap,directio,access=user"


class HostShare:
    """The share, mounted only while it is needed: a machine with a mounted one cannot be saved."""

    def __init__(self) -> None:
        self._address = ""
        self._mounted = False

    def locate(self, address: str) -> None:
        """The device is there, says the daemon."""
        self._address = address

    def __call__(self) -> str:
        """The directory it is mounted at."""
        if not self._mounted:
            scheme, _, tag = self._address.partition(":")
            if scheme != "9p":
                raise Refused("invalid", f"the agent does not know how to mount a share at {self._address!r}")
            syscalls.mount(tag, paths.SHARE, "9p", syscalls.MS_NODEV, _OPTIONS)
            # Shared, so that a mount made in one container can be seen in another that asks for it.
            syscalls.mount("", paths.SHARE, "", syscalls.MS_SHARED)
            self._mounted = True
        return paths.SHARE

    def leave(self) -> None:
        """No container uses it any more: unmount it, unless somebody still holds something of it."""
        if self._mounted:
            with suppress(OSError):
                syscalls.umount(paths.SHARE)
                self._mounted = False
