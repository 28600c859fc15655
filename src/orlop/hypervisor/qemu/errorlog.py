"""What QEMU writes to its standard error: memory that cannot grow, and a file when QEMU has ended.

A QEMU that was taken over writes as much as it likes; a file would be as large as the host's disk. Its
descriptor is of memory with a fixed size (memfd_create(2), F_ADD_SEALS), which QEMU keeps while the
daemon is away.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

NAME = "qemu.log"
_SIZE = 64 << 10
_READ = 8192
_LINE_SHOWN = 700
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class ErrorLog:
    """The standard error of the machine in ``directory``; without a descriptor, nothing. :meth:`close` it."""

    def __init__(self, directory: Path, descriptor: int | None = None) -> None:
        self._path = directory / NAME
        self._descriptor = descriptor

    @classmethod
    def new(cls, directory: Path) -> ErrorLog:
        """An empty one. Raises OSError."""
        descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        log = cls(directory, descriptor)
        try:
            os.ftruncate(descriptor, _SIZE)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            log.close()
            raise
        return log

    @classmethod
    def of_process(cls, directory: Path, pid: int) -> ErrorLog:
        """That of a QEMU which an earlier daemon started; empty when QEMU has put something else there."""
        try:
            # Whatever it is: no open waits, and nothing but what was made here has the seals.
            descriptor = os.open(f"/proc/{pid}/fd/2", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return cls(directory)
        try:
            whole = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
            if whole and os.fstat(descriptor).st_size == _SIZE:
                return cls(directory, descriptor)
        except OSError:
            pass
        os.close(descriptor)
        return cls(directory)

    def fileno(self) -> int:
        """The descriptor to write to."""
        assert self._descriptor is not None
        return self._descriptor

    def last_words(self) -> str:
        """What QEMU wrote last, on one line; "" if nothing."""
        return "; ".join(self._lines()[-3:])

    def complaint(self) -> str:
        """The last that QEMU wrote about an error, or else wrote at all.

        After "KVM internal error" come the registers, line by line."""
        lines = self._lines()
        for number in range(len(lines) - 1, -1, -1):
            if "error" in lines[number].lower():
                # What kind it was may stand on the next line.
                more = [line for line in lines[number + 1 : number + 2] if "=" not in line]
                return "; ".join((lines[number], *more))
        return "; ".join(lines[-3:])

    def save(self) -> None:
        """Write it to the machine's directory, for who looks there when QEMU has ended."""
        with suppress(OSError):  # the directory may be gone with the machine
            if data := self._content():
                self._path.write_bytes(data)

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _content(self) -> bytes:
        if self._descriptor is None:
            return b""
        return os.pread(self._descriptor, _SIZE, 0).rstrip(b"\0")

    def _lines(self) -> list[str]:
        lines = self._content()[-_READ:].decode(errors="replace").splitlines()
        return [line.strip()[:_LINE_SHOWN] for line in lines if line.strip() and "warning:" not in line]
