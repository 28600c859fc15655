"""Names in a container's root that are held open while it is looked into.

A root that is a directory of the host is shared with the guest, which forgets a name when nobody uses it:
what the host does there must be seen. So each path would be asked for from its first part on, again and
again, and for each question the hypervisor opens all directories above. A name that is held is not asked for.

It is held no longer than a request takes: what the host renames meanwhile is seen by the next. In a root that
is this VM's alone names change here only, where the kernel hears of it: what was looked up there stays held
by a :class:`KeptNames` while the container lives, and what was mapped of such a file stays in memory.
"""

from __future__ import annotations

import errno
import os

from orlop.linux import syscalls

MOST = 256
"""Names that are held: an image chooses what its links lead to."""
KEPT = 64
"""Names of one container that stay held: what leads to its programs, and who its users are."""

_FLAGS = os.O_PATH | os.O_NOFOLLOW


class KeptNames:
    """Holds the names that were looked up last, up to :data:`KEPT`."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        self._closed = False

    def take(self, name: str, fd: int) -> None:
        """Own ``fd``, which is what ``name`` is now."""
        if self._closed:
            os.close(fd)
            return
        before = self._fds.pop(name, -1)
        if before < 0 and len(self._fds) >= KEPT:
            before = self._fds.pop(next(iter(self._fds)))
        self._fds[name] = fd
        if before >= 0:
            os.close(before)

    def drop(self, name: str) -> None:
        """Let go of ``name``, if it is held."""
        fd = self._fds.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Let go of all, and of what comes. Idempotent."""
        self._closed = True
        while self._fds:
            os.close(self._fds.popitem()[1])


class Pins:
    """Holds names below ``root``, a descriptor of the caller, open until :meth:`close`.

    ``keeper`` gets then what is on the root's own mount; what is mounted in it is the host's, or somebody
    wants to unmount it.
    """

    def __init__(self, root: int, keeper: KeptNames | None = None) -> None:
        self._root = root
        self._keeper = keeper
        self._places: dict[str, str | None] = {}
        self._fds: list[int] = []
        self._own: dict[str, int] = {}

    def hold(self, path: str) -> str | None:
        """Hold each name on the way to ``path``, and what links lead to; the path without links.

        It is None for what is missing, and "" for what is not looked at so closely.
        """
        place: str | None = ""
        for part in path.split("/"):
            if part in ("", "."):
                continue
            place = "" if part == ".." else self._step(f"{place}/{part}")
            if not place:
                return place
        return place

    def _step(self, name: str) -> str | None:
        if name in self._places:
            return self._places[name]
        if len(self._fds) + len(self._own) >= MOST:
            return ""
        try:
            fd = self._open(name)
        except (FileNotFoundError, NotADirectoryError):
            self._places[name] = None
            return None
        except OSError:
            return ""
        # A link that leads to itself ends here.
        self._places[name] = ""
        self._places[name] = place = self._led(name, fd)
        return place

    def _open(self, name: str) -> int:
        if self._keeper is not None:
            try:
                fd = syscalls.open_in_root(self._root, name, _FLAGS, one_mount=True)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            else:
                self._own[name] = fd
                return fd
        fd = syscalls.open_in_root(self._root, name, _FLAGS)
        self._fds.append(fd)
        return fd

    def _led(self, name: str, fd: int) -> str | None:
        try:
            link = os.readlink("", dir_fd=fd)
        except OSError:  # it is none
            return name
        return self.hold(link if link.startswith("/") else f"{os.path.dirname(name)}/{link}")

    def weigh(self, place: str) -> None:
        """``place``, where :meth:`hold` has led, is run: keep it afterwards only if it has no other name.

        The kernel keeps pages for each name of a file of the host, and what is written by one of them is not
        seen by the others.
        """
        fd = self._own.get(place, -1)
        if self._keeper is not None and fd >= 0 and os.fstat(fd).st_nlink > 1:
            self._fds.append(self._own.pop(place))
            self._keeper.drop(place)

    def close(self) -> None:
        """Let go of all, or leave it to the keeper. Idempotent."""
        while self._fds:
            os.close(self._fds.pop())
        own, self._own = self._own, {}
        for name, fd in own.items():
            assert self._keeper is not None
            self._keeper.take(name, fd)
        self._places.clear()
