"""A container's output as it is, in files, FIFOs and devices of the host.

A regular file gets every byte once, over restarts of the daemon as well: what was written is counted in
it. Of a FIFO or a device nobody knows afterwards what went through; there the bytes of a moment may
come twice after a daemon was killed, and none is lost. Who reads slowly holds up the container.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from dataclasses import dataclass

from orlop.errors import FailedPrecondition
from orlop.host import threads
from orlop.host.process import process_start_time
from orlop.sandbox.crilog import STDERR, STDOUT, CriLog
from orlop.sandbox.spec import Sink
from orlop.value import Value

log = logging.getLogger(__name__)

_NAMES = {STDOUT: "stdout", STDERR: "stderr"}


class FileMark(Value, frozen=True):
    """A moment in the life of a regular file: its size, and how many bytes of the stream were written."""

    stream: int
    device: int
    inode: int
    size: int
    written: int = 0


@dataclass
class _Target:
    """Where one stream goes; ``fd`` -1 when nowhere."""

    path: str
    fd: int = -1
    regular: bool = False
    written: int = 0


class RawOutput:
    """The files of a raw :class:`Sink`; takes output as :class:`~orlop.sandbox.crilog.CriLog` does."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._targets = {STDOUT: _Target(sink.stdout), STDERR: _Target(sink.stderr)}
        self._lock = asyncio.Lock()
        self.lost = 0
        """Bytes that could not be written."""

    async def open(self) -> None:
        """Open the files; FailedPrecondition when one cannot be."""
        for number, target in self._targets.items():
            if target.path:
                target.fd = await threads.call(open_raw, target.path, _NAMES[number], self._sink.since)
                target.regular = stat.S_ISREG(os.fstat(target.fd).st_mode)
                os.set_blocking(target.fd, target.regular)

    async def write(self, stream: int, data: bytes) -> int:
        """Write output; returns how many bytes of this stream were taken in all, lost ones included."""
        target = self._targets[stream]
        async with self._lock:
            if target.fd >= 0:
                try:
                    await self._write(target, memoryview(data))
                except OSError as error:
                    if self.lost == 0:
                        log.warning("%s: output is being lost: %s", target.path, error)
                    self.lost += len(data)
            target.written += len(data)
            return target.written

    async def end(self, stream: int) -> int:
        """The stream is at its end."""
        return self._targets[stream].written

    def resume(self, stream: int, offset: int) -> None:
        """Count on from ``offset`` bytes, which an earlier daemon wrote."""
        self._targets[stream].written = offset

    async def marks(self) -> tuple[FileMark, ...]:
        """What a later daemon needs for :func:`written_since`."""
        async with self._lock:
            return _marks(self._targets)

    async def reopen(self) -> None:
        """Go on in new files of the same names. On failure (FailedPrecondition) the old ones stay in use."""
        fresh = RawOutput(self._sink)
        try:
            await fresh.open()
        except FailedPrecondition:
            await fresh.close()
            raise
        async with self._lock:
            for number, target in self._targets.items():
                other = fresh._targets[number]
                target.fd, other.fd = other.fd, target.fd
                target.regular = other.regular
        await fresh.close()

    async def close(self) -> None:
        """Close the files; later writes are swallowed."""
        async with self._lock:
            for target in self._targets.values():
                if target.fd >= 0:
                    os.close(target.fd)
                    target.fd = -1

    async def _write(self, target: _Target, view: memoryview) -> None:
        if target.regular:
            await threads.call(_write_out, target.fd, view)
            return
        while view:
            try:
                view = view[os.write(target.fd, view) :]
            except BlockingIOError:
                await _writable(target.fd)


def output_of(sink: Sink) -> CriLog | RawOutput:
    """What takes the output that goes to ``sink``; to be opened."""
    return RawOutput(sink) if sink.raw else CriLog(sink.log)


def open_raw(path: str, what: str, since: int = 0) -> int:
    """A descriptor that writes to ``path``: a file, made if missing and appended to, a FIFO, or a device.

    With ``since`` the path is in /proc/PID, of the process that began then. Blocks for a moment. Raises
    FailedPrecondition naming ``what``.
    """
    descriptor = _open_raw(path, what)
    # Looked at afterwards: a process that lives now has lived all along.
    if since and process_start_time(int(path.split("/")[2])) != since:
        os.close(descriptor)
        raise FailedPrecondition(f"{what} cannot go to {path}: its process has ended")
    return descriptor


def _open_raw(path: str, what: str) -> int:
    flags = os.O_CLOEXEC | os.O_NOCTTY | os.O_APPEND
    try:
        try:
            kind = os.stat(path).st_mode  # noqa: PTH116 - one call more for nothing
        except FileNotFoundError:
            return os.open(path, flags | os.O_WRONLY | os.O_CREAT, 0o640)
        if stat.S_ISFIFO(kind):
            # Both ways: neither does opening wait for a reader, nor does writing fail while there is none.
            return os.open(path, os.O_CLOEXEC | os.O_RDWR)
        if stat.S_ISREG(kind) or stat.S_ISCHR(kind):
            return os.open(path, flags | os.O_WRONLY)
        raise FailedPrecondition(f"{what} cannot go to {path}: it is no file, FIFO or character device")
    except OSError as error:
        raise FailedPrecondition(f"{what} cannot go to {path}: {error.strerror}") from error


def written_since(marks: tuple[FileMark, ...], sink: Sink) -> tuple[int, int]:
    """Bytes of stdout and stderr that are in their files; 0 for one that cannot tell."""
    counts = {STDOUT: 0, STDERR: 0}
    paths = {STDOUT: sink.stdout, STDERR: sink.stderr}
    for mark in marks:
        counts[mark.stream] = mark.written
        try:
            status = os.stat(paths[mark.stream])  # noqa: PTH116
        except OSError:
            continue
        if (status.st_dev, status.st_ino) == (mark.device, mark.inode) and status.st_size >= mark.size:
            counts[mark.stream] += status.st_size - mark.size
    return counts[STDOUT], counts[STDERR]


def _marks(targets: dict[int, _Target]) -> tuple[FileMark, ...]:
    found = []
    for number, target in targets.items():
        if target.fd >= 0 and target.regular:
            status = os.fstat(target.fd)
            found.append(
                FileMark(
                    stream=number,
                    device=status.st_dev,
                    inode=status.st_ino,
                    size=status.st_size,
                    written=target.written,
                )
            )
    if len({(mark.device, mark.inode) for mark in found}) < len(found):
        return ()  # both streams in one file: its size says nothing of either
    return tuple(found)


def _write_out(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def mark() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(fd, mark)
    try:
        await ready
    finally:
        loop.remove_writer(fd)
