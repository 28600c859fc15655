"""A container's output as a CRI log file.

Each line is ``<RFC 3339 time with nanoseconds> <stdout|stderr> <P|F> <content>`` (kubelet's
``pkg/kubelet/kuberuntime/logs``). A line longer than :data:`MAX_LINE` goes out in pieces marked
``P``, the last one marked ``F``; a last line without a newline is marked ``P``, for a reader adds the newline
of each ``F``. The start of a line whose end has not come yet is held back, and
the caller learns how many bytes of each stream are safely in the file: whatever is not can be asked
for again after a crash, so that no line is lost or torn by a restart of the daemon.

A log that cannot be written (directory removed, disk full) loses lines, never the container.
"""

from __future__ import annotations

import asyncio
import glob
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from orlop.errors import FailedPrecondition
from orlop.host import threads
from orlop.host.tasks import uncancelled
from orlop.value import Value

log = logging.getLogger(__name__)

MAX_LINE = 16 * 1024
"""Longest content of one log line, in bytes, as other runtimes have it."""

STDOUT = 1
STDERR = 2

_NAMES = {STDOUT: b"stdout", STDERR: b"stderr"}

MODE = 0o640
"""The group may read a log, for those who collect them; others may not."""


class LogPosition(Value, frozen=True):
    """A moment in a log's life: in which file, at which size, how many bytes of each stream were settled.

    With it and the file a later daemon counts what was settled since: see :func:`settled_since`.
    """

    device: int
    inode: int
    size: int
    stdout: int = 0
    stderr: int = 0


def timestamp(now_ns: int) -> bytes:
    """``now_ns`` (since the epoch) as RFC 3339 in UTC with all nine digits of the nanoseconds."""
    seconds, nanoseconds = divmod(now_ns, 1_000_000_000)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return b"%s.%09dZ" % (whole.encode(), nanoseconds)


def format_lines(stream: int, lines: bytes, now_ns: int) -> bytes:
    """Log lines for ``lines``, which is empty or ends in a newline, all stamped with ``now_ns``."""
    if not lines:
        return b""
    stamp = timestamp(now_ns) + b" " + _NAMES[stream]
    full = stamp + b" F "
    if not _has_long(lines):
        return full + lines[:-1].replace(b"\n", b"\n" + full) + b"\n"
    partial = stamp + b" P "
    pieces: list[bytes] = []
    for line in lines[:-1].split(b"\n"):
        while len(line) > MAX_LINE:
            pieces.append(partial + line[:MAX_LINE])
            line = line[MAX_LINE:]  # noqa: PLW2901 - what is left of it
        pieces.append(full + line)
    return b"\n".join(pieces) + b"\n"


def _has_long(lines: bytes) -> bool:
    """Whether one of ``lines`` needs more than one line of the log."""
    start = 0
    while len(lines) - start > MAX_LINE + 1:
        # From the far end: most lines are short, and none of those before is looked at.
        newline = lines.rfind(b"\n", start, start + MAX_LINE + 1)
        if newline < 0:
            return True
        start = newline + 1
    return False


def _partial(stream: int, now_ns: int) -> bytes:
    """What stands before a piece of a line."""
    return timestamp(now_ns) + b" " + _NAMES[stream] + b" P "


def settled_since(path: str, position: LogPosition) -> tuple[int, int]:
    """Bytes of stdout and stderr that are in the log at ``path``, or in its renamed predecessor.

    A line that a crash cut short is removed from the file. When the file is gone, what was
    settled at ``position`` is the answer. Raises OSError.
    """
    counts = {b"stdout": position.stdout, b"stderr": position.stderr}
    found = _find(path, position)
    if found is not None:
        _count(found, position.size, counts)
        if found != Path(path) and Path(path).exists():
            _count(Path(path), 0, counts)  # the crash came just after the log was reopened
    return counts[b"stdout"], counts[b"stderr"]


def _count(path: Path, start: int, counts: dict[bytes, int]) -> None:
    """Add the bytes that the lines of a log file stand for, from ``start`` on."""
    with path.open("r+b") as file:
        file.seek(start)
        whole = start
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(whole)
                break
            whole += len(line)
            parts = line.split(b" ", 3)
            if len(parts) == 4 and parts[1] in counts:
                counts[parts[1]] += len(parts[3]) - (parts[2] == b"P")


def _find(path: str, position: LogPosition) -> Path | None:
    named = Path(path)
    candidates = [named, *sorted(named.parent.glob(f"{glob.escape(named.name)}.*"))]
    for candidate in candidates:
        try:
            status = candidate.stat()
        except OSError:
            continue
        same = (status.st_dev, status.st_ino) == (position.device, position.inode)
        if same and status.st_size >= position.size:
            return candidate
    return None


def open_file(path: str, *, make_directory: bool) -> int:
    """A descriptor that appends to the log at ``path``. Raises FailedPrecondition."""
    try:
        if make_directory:
            Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, MODE)
    except OSError as error:
        raise FailedPrecondition(f"log file {path} cannot be opened: {error}") from error


@dataclass
class _Stream:
    """One stream's unfinished line, and how many bytes went through."""

    held: bytearray = field(default_factory=bytearray)
    written: int = 0


class CriLog:
    """The log file of one container. An empty path makes a log that swallows everything."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._lock = asyncio.Lock()
        self._streams = {STDOUT: _Stream(), STDERR: _Stream()}
        self.lost = 0
        """Bytes of log that could not be written."""

    async def open(self) -> None:
        """Open the file for appending; FailedPrecondition when that is not possible."""
        if self._path:
            self._fd = await self._new_file(make_directory=True)

    async def write(self, stream: int, data: bytes) -> int:
        """Take output; returns how many bytes of this stream, from its first on, are settled.

        Settled means in the file, or known to be lost for good.
        """
        async with self._lock:
            state = self._streams[stream]
            end = data.rfind(b"\n") + 1
            lines = b""
            if end:
                lines = bytes(state.held) + data[:end]
                state.held.clear()
                state.held += data[end:]
            else:
                state.held += data
            await self._append(stream, lines, held=state.held)
            state.written += len(data)
            return state.written - len(state.held)

    async def end(self, stream: int) -> int:
        """The stream is at its end: an unfinished line goes out as the piece that it is."""
        async with self._lock:
            state = self._streams[stream]
            if state.held:
                piece = _partial(stream, time.time_ns()) + bytes(state.held) + b"\n"
                state.held.clear()
                await self._put(piece)
            return state.written

    def resume(self, stream: int, offset: int) -> None:
        """Count on from ``offset`` bytes, which an earlier daemon settled."""
        self._streams[stream].written = offset

    async def position(self) -> LogPosition | None:
        """Where the log stands; None when there is no file."""
        async with self._lock:
            if self._fd < 0:
                return None
            status = os.fstat(self._fd)
            out, err = (
                state.written - len(state.held) for state in (self._streams[STDOUT], self._streams[STDERR])
            )
        return LogPosition(
            device=status.st_dev, inode=status.st_ino, size=status.st_size, stdout=out, stderr=err
        )

    async def reopen(self) -> None:
        """Let go of a file that was renamed away and make a new one under the old name.

        On failure (FailedPrecondition) the old file stays in use, and no new one is made later.
        """
        if not self._path:
            return
        async with self._lock:
            # Under the lock: a wait for it, if cancelled, would lose the file just opened.
            fd = await self._new_file(make_directory=False)
            old, self._fd = self._fd, fd
        if old >= 0:
            os.close(old)

    async def close(self) -> None:
        """Close the file; later writes are swallowed. What is held back was never settled."""
        async with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            await threads.call(os.close, fd)

    async def _append(self, stream: int, lines: bytes, held: bytearray | None = None) -> None:
        """Write ``lines``, and of a ``held`` unfinished line what exceeds a log line's length."""
        now = time.time_ns()
        text = format_lines(stream, lines, now)
        if held is not None and len(held) > MAX_LINE:
            whole = (len(held) - 1) // MAX_LINE * MAX_LINE
            prefix = _partial(stream, now)
            text += b"".join(
                prefix + bytes(held[start : start + MAX_LINE]) + b"\n" for start in range(0, whole, MAX_LINE)
            )
            del held[:whole]
        await self._put(text)

    async def _put(self, text: bytes) -> None:
        if not text or self._fd < 0:
            return
        await threads.call(self._write_out, self._fd, text)

    def _write_out(self, fd: int, text: bytes) -> None:
        view = memoryview(text)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except OSError as error:
            if self.lost == 0:
                log.warning("log %s: output is being lost: %s", self._path, error)
            self.lost += len(view)

    async def _new_file(self, *, make_directory: bool) -> int:
        opening = threads.call(open_file, self._path, make_directory=make_directory)
        return await uncancelled(opening, unwanted=os.close)
