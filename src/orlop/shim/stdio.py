"""The streams of a process: FIFOs of containerd's, whose other ends the daemon opens, files, or a program."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from orlop.errors import FailedPrecondition, InvalidArgument, Unimplemented
from orlop.host import process
from orlop.sandbox.spec import Sink
from orlop.value import Value

_CHUNK = 1 << 16
_LONGEST = 4096
PROGRAMS = ("binary", "binary-v2")
"""The schemes of logging programs."""


class Stdio(Value, frozen=True):
    """Paths of FIFOs, or of files for what is written; "" for a stream that nobody wants.

    ``program`` is the URI of a logging program, "" for none. What it reads are FIFOs of ours, as soon as
    :mod:`orlop.shim.loggers` has started it.
    """

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False
    program: str = ""

    @property
    def sink(self) -> Sink:
        """Where the process writes to."""
        return Sink(stdout=self.stdout, stderr="" if self.terminal else self.stderr)

    @property
    def named(self) -> tuple[str, str]:
        """Where it writes to, in containerd's own words: clients remove FIFOs that they are told of."""
        return (self.program, self.program) if self.program else (self.stdout, self.stderr)

    @property
    def attached(self) -> bool:
        """Whether the first process of a container needs somebody beside it for what it writes."""
        return bool(self.stdin) or self.terminal

    @property
    def fifos(self) -> list[str]:
        """Those that end when nobody holds them open."""
        return [path for path in (self.stdin, self.stdout, self.stderr) if path and is_fifo(path)]


def of(stdin: str, stdout: str, stderr: str, *, terminal: bool) -> Stdio:
    """The streams as containerd names them. Blocks. Raises OrlopError."""
    if urlsplit(stdout).scheme in PROGRAMS:
        if len(stdout) > _LONGEST:
            raise InvalidArgument(f"stdout: {stdout[:200]!r} is longer than {_LONGEST} bytes")
        # As in containerd's own shims, the one program gets both.
        return Stdio(stdin=_path("stdin", stdin, files=False), terminal=terminal, program=stdout)
    return Stdio(
        stdin=_path("stdin", stdin, files=False),
        stdout=_path("stdout", stdout),
        # With a terminal it is not used, and some callers name a FIFO that they have not made.
        stderr="" if terminal else _path("stderr", stderr),
        terminal=terminal,
    )


def _path(what: str, text: str, *, files: bool = True) -> str:
    """The path of a stream: of a FIFO, or behind ``file://`` of a file."""
    if not text:
        return ""
    scheme, path = "fifo", text
    if not text.startswith("/"):
        parts = urlsplit(text)
        scheme, path = parts.scheme, parts.path
    if scheme not in ("fifo", "file") or (scheme == "file" and not files):
        raise Unimplemented(
            f"{what}: a stream of the kind {scheme or 'of no name'!r} cannot be had; "
            "FIFOs and, for what is written, file:// and binary:// can"
        )
    if not posixpath.isabs(path) or "\0" in path or len(path) > _LONGEST:
        raise InvalidArgument(f"{what}: {path[:200]!r} is not the absolute path of a stream")
    if scheme == "fifo" and not is_fifo(path):
        raise FailedPrecondition(f"{what}: {path} is not a FIFO, or is not there")
    if scheme == "file":
        try:
            Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise FailedPrecondition(f"{what}: {path} cannot be made: {error.strerror}") from error
    return path


def is_fifo(path: str) -> bool:
    """Whether there is a FIFO at ``path``."""
    try:
        return stat.S_ISFIFO(os.stat(path, follow_symlinks=False).st_mode)  # noqa: PTH116
    except OSError:
        return False


def both_ends(path: str) -> int:
    """A descriptor that is a reader and a writer of the FIFO at ``path``. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)


class Feed:
    """What comes to a process through its stdin's FIFO, until containerd says that this was all.

    A client that goes is not the end: another may come. So this is a writer as well, until :meth:`finish`.
    Raises FailedPrecondition.
    """

    def __init__(self, path: str) -> None:
        self._writer = -1
        try:
            self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                self._writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                os.close(self._reader)
                raise
        except OSError as error:
            raise FailedPrecondition(f"stdin cannot be read from {path}: {error.strerror}") from error

    async def pass_on(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Hand on all that comes, to the end."""
        while data := await self._read():
            await write(data)

    async def _read(self) -> bytes:
        while True:
            with suppress(BlockingIOError):
                return os.read(self._reader, _CHUNK)
            await process.readable(self._reader)

    def finish(self) -> None:
        """No more comes than what clients have written or write still. Idempotent."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def close(self) -> None:
        """Let go of the FIFO. Idempotent."""
        self.finish()
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1
