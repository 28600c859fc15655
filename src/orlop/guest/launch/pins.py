"""Names in a container's root that are held open while it is looked into.

A root that is a directory of the host is shared with the guest, which forgets a name when nobody uses it:
what the host does there must be seen. So each path would be asked for from its first part on, again and
again, and for each question the hypervisor opens all directories above. A name that is held is not asked for.

It is held no longer than a request takes: what the host renames meanwhile is seen by the next.
"""

from __future__ import annotations

import os

from orlop.linux import syscalls

MOST = 256
"""Names that are held: an image chooses what its links lead to."""

_FLAGS = os.O_PATH | os.O_NOFOLLOW


class Pins:
    """Holds names below ``root``, a descriptor of the caller, open while :meth:`hold` is called."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._places: dict[str, str | None] = {}
        self._fds: list[int] = []

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
        if len(self._fds) >= MOST:
            return ""
        try:
            fd = syscalls.open_in_root(self._root, name, _FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            return ""
        self._fds.append(fd)
        # A link that leads to itself ends here.
        self._places[name] = ""
        self._places[name] = place = self._led(name, fd)
        return place

    def _led(self, name: str, fd: int) -> str | None:
        try:
            link = os.readlink("", dir_fd=fd)
        except OSError:  # it is none
            return name
        return self.hold(link if link.startswith("/") else f"{os.path.dirname(name)}/{link}")

    def close(self) -> None:
        """Let go of all. Idempotent."""
        while self._fds:
            os.close(self._fds.pop())
        self._places.clear()
