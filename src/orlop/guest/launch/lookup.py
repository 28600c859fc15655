"""Looking into a container's file system from outside, as the container itself would see it.

Every path is resolved below the container's root (openat2, RESOLVE_IN_ROOT), so a symbolic link that an
image put there leads no further than it does inside.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time

from orlop.guest.launch.pins import KeptNames, Pins
from orlop.linux import syscalls
from orlop.linux.users import MAX_FILE
from orlop.wire.messages import Refused

_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)
_SMALL = 64 << 10
_SETTLED = 10.0
"""Seconds after which a file that looks the same is the same: its times are those of the host's clock, which
count some milliseconds as one."""


class RootDirectory:
    """The root directory of a container, by a descriptor that this owns.

    With ``keeps`` the names that were held in it stay so until :meth:`close`.
    """

    def __init__(self, pid: int, *, keeps: bool = False) -> None:
        self._keeper = KeptNames() if keeps else None
        self._texts: dict[str, tuple[tuple[int, ...], str]] = {}
        self._fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def pins(self) -> Pins:
        """What holds names in it for a while; to be closed."""
        return Pins(self._fd, self._keeper)

    def close(self) -> None:
        """Let go, so that what is mounted there can be unmounted. Idempotent."""
        if self._keeper is not None:
            self._keeper.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, path: str) -> str:
        """The text of a small regular file; "" when there is none that can be read.

        One that has not changed for long is read once: of a file of the host that takes five questions, and
        to look at it takes one.
        """
        try:
            status = self._look(path)
        except OSError:
            return ""
        seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        before, text = self._texts.get(path, ((), ""))
        if before == seen:
            return text
        text = self._read(path)
        if stat.S_ISREG(status.st_mode) and len(text) <= _SMALL and time.time() - status.st_ctime > _SETTLED:
            self._texts[path] = (seen, text)
        return text

    def _look(self, path: str) -> os.stat_result:
        fd = syscalls.open_in_root(self._fd, path, os.O_PATH)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _read(self, path: str) -> str:
        try:
            fd = syscalls.open_in_root(self._fd, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return ""
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return ""
            return os.read(fd, min(status.st_size, MAX_FILE)).decode(errors="replace")
        except OSError:
            return ""
        finally:
            os.close(fd)

    def find_program(self, name: str, path: bytes, cwd: str) -> bytes:
        """The file to execute, as execvp finds it from ``cwd``; ``exec_failed`` says why there is none."""
        if "/" in name:
            self._check_program(name, name if name.startswith("/") else f"{cwd}/{name}")
            return os.fsencode(name)
        for directory in path.split(b":"):
            candidate = (directory or b".") + b"/" + os.fsencode(name)
            mode = self._mode(
                os.fsdecode(candidate if candidate.startswith(b"/") else os.fsencode(cwd) + b"/" + candidate)
            )
            if mode is not None and stat.S_ISREG(mode) and mode & 0o111:
                return candidate
        raise Refused("exec_failed", f'exec: "{name}": executable file not found in $PATH')

    def terminal(self, owner: int, group: int) -> tuple[int, str]:
        """A new terminal of the container's own devpts: the master, and the slave's path inside.

        The slave belongs to ``owner`` and ``group``, as the guest counts them.
        """
        try:
            master = syscalls.open_in_root(self._fd, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
        except OSError as error:
            raise Refused(
                "failed_precondition", f"the container has no /dev/pts: {error.strerror}"
            ) from error
        try:
            fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
            (number,) = struct.unpack("I", fcntl.ioctl(master, _TIOCGPTN, b"\0\0\0\0"))
            path = f"/dev/pts/{number}"
            slave = syscalls.open_in_root(self._fd, path, os.O_PATH)
            try:
                os.chown(f"/proc/self/fd/{slave}", owner, group)
            finally:
                os.close(slave)
        except BaseException:
            os.close(master)
            raise
        return master, path

    def _mode(self, path: str) -> int | None:
        try:
            return self._look(path).st_mode
        except OSError:
            return None

    def _check_program(self, name: str, path: str) -> None:
        try:
            mode = self._look(path).st_mode
        except OSError as error:
            if error.errno not in _NOT_THERE:
                return  # a link in /proc, say: exec will tell
            reason = (error.strerror or "").lower()
            raise Refused("exec_failed", f'exec: "{name}": stat {name}: {reason}') from error
        if stat.S_ISDIR(mode):
            raise Refused("exec_failed", f'exec: "{name}": is a directory: permission denied')
        if not mode & 0o111:
            raise Refused("exec_failed", f'exec: "{name}": permission denied')


def resolve_target(root: str, path: str) -> str:
    """Where ``path`` is below ``root``: symbolic links followed as if ``root`` were /, dangling ones too.

    ``failed_precondition`` for a loop of links.
    """
    pending = [part for part in path.split("/") if part not in ("", ".")][::-1]
    done: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            done = done[:-1]
            continue
        try:
            link = os.readlink("/".join([root, *done, part]))
        except OSError:
            done.append(part)
            continue
        links += 1
        if links > 40:
            raise Refused("failed_precondition", f"too many symbolic links in {path}")
        if link.startswith("/"):
            done = []
        pending += [piece for piece in link.split("/") if piece not in ("", ".")][::-1]
    return "/" + "/".join(done)
