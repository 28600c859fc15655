"""Logging programs: what a process of a task writes goes to a program of the host (``binary://``).

It is started as containerd's own shims do it: arguments from the URI's query, CONTAINER_ID and
CONTAINER_NAMESPACE alone as its environment, what the process writes as descriptors 3 and 4, and as 5 a pipe
that it closes when it is ready. Here 3 and 4 are FIFOs in a directory of its own, which the engine writes to
like to any other. The keeper holds them too: so neither they nor the program end with the daemon, and a
later one finds the program by the file in that directory. No writer is left when the process has ended;
the program reads to the end, and is ended itself if it then stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.host import files, process, threads
from orlop.host.tasks import Tasks, end, roll_back, together
from orlop.linux.removal import remove_tree
from orlop.shim import stdio
from orlop.shim.model import Key
from orlop.shim.stdio import Stdio
from orlop.value import UNREADABLE, Value

log = logging.getLogger(__name__)

PLACE = "shim-logging"
"""The directory of all, in that of the daemon's state."""

READY_TIME = 30.0
"""Seconds in which a program must say that it is ready."""

LEAVE_TIME = 10.0
"""Seconds that a program has for what is left, when there is nothing more to come; then it gets SIGTERM."""

TERM_TIME = 5.0
"""Seconds between SIGTERM and SIGKILL."""

_STRICT = "binary-v2"
"""The scheme of a program that writes a byte before it closes the pipe."""

_MOST_ARGUMENTS = 128
_NAMES = ("stdout", "stderr")
_PROCESS = "process.json"
_LONGEST_NOTE = 1 << 12
_CHUNK = 1 << 16
# The one thing that gives a child descriptors of these numbers: the shell, and then it is the program.
_BECOME = 'exec "$@" 3<stdout 4<stderr 5>&1 >/dev/null'


class _Running(Value, frozen=True):
    """The program, as a later daemon has to know it."""

    pid: int
    since: int


@dataclass
class Logger:
    """A program, and our ends of the FIFOs that it reads."""

    key: Key
    exec_id: str
    program: str
    directory: Path
    running: _Running | None = None
    child: process.Detached | None = None
    held: list[int] = field(default_factory=list)
    watch: asyncio.Task[None] | None = None
    ending: asyncio.Lock = field(default_factory=asyncio.Lock)
    removed: bool = False

    @property
    def name(self) -> str:
        """What people call it."""
        return f"task {self.key[1]}: the logging program {self.program}"


def command(uri: str) -> list[str]:
    """The program and its arguments: each key of the query once, and behind it the first of its values.

    Raises InvalidArgument.
    """
    parts = urlsplit(uri)
    path = unquote(parts.path)
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=_MOST_ARGUMENTS)
    except ValueError as error:
        raise InvalidArgument(
            f"the logging program {path[:200]!r} has more than {_MOST_ARGUMENTS} arguments"
        ) from error
    first = dict(reversed(pairs))
    found = [
        path,
        *(word for name in dict.fromkeys(name for name, _ in pairs) for word in (name, first[name])),
    ]
    if not path.startswith("/") or any("\0" in word for word in found):
        raise InvalidArgument(f"{path[:200]!r} is not the absolute path of a logging program")
    return found


class Loggers:
    """All of them, below ``state``. Each is its task's: who removes that calls :meth:`end`."""

    def __init__(self, state: Path) -> None:
        self._directory = state / PLACE
        self._loggers: dict[Path, Logger] = {}
        self._tasks = Tasks()

    async def close(self) -> None:
        """Let go of all; programs run on, and the keeper holds what they read."""
        await self._tasks.close()
        for logger in self._loggers.values():
            _let_go(logger)
        self._loggers.clear()

    # Begin

    async def start(self, key: Key, exec_id: str, asked: Stdio) -> Stdio:
        """Start the program that is asked for, if one is; the streams with the FIFOs that it reads.

        Returns when it is ready. A failure or cancellation leaves nothing. Raises OrlopError.
        """
        if not asked.program:
            return asked
        words = command(asked.program)
        logger = Logger(key, exec_id, words[0], self._path(key, exec_id))
        try:
            await threads.call(_furnish, logger)
            self._loggers[logger.directory] = logger
            await self._run(logger, words, strict=urlsplit(asked.program).scheme == _STRICT)
        except BaseException:
            await roll_back(logger.name, self._kill(logger))
            raise
        logger.watch = self._tasks.spawn(self._watch(logger), logger.name)
        return _with_fifos(asked, logger.directory)

    async def _run(self, logger: Logger, words: list[str], *, strict: bool) -> None:
        told, tells = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(tells, True)
            try:
                logger.child = await process.spawn_detached(
                    ["/bin/sh", "-c", _BECOME, "sh", *words],
                    env={
                        "CONTAINER_ID": logger.exec_id or logger.key[1],
                        "CONTAINER_NAMESPACE": logger.key[0],
                    },
                    cwd=logger.directory,
                    stdout=tells,
                )
            finally:
                os.close(tells)
            child = logger.child
            logger.running = _Running(pid=child.pid, since=child.start_time)
            # The daemon is to be the last that the kernel kills, and not this.
            process.set_oom_score(child.pid, 0)
            await threads.call(files.save, logger.directory / _PROCESS, msgspec.json.encode(logger.running))
            await _ready(logger, told, strict=strict)
        except OSError as error:
            raise FailedPrecondition(f"{logger.name} cannot be started: {error.strerror}") from error
        finally:
            os.close(told)

    async def find_again(self, key: Key, exec_id: str, asked: Stdio) -> None:
        """Go on with the program of an earlier daemon, if it is there."""
        directory = self._path(key, exec_id)
        if not asked.program or not await threads.call(directory.is_dir):
            return
        logger = Logger(key, exec_id, command(asked.program)[0], directory)
        logger.running = await threads.call(_noted, directory)
        try:
            await threads.call(_hold, logger)
        except OSError as error:
            log.warning("%s has nothing to read from any more: %s", logger.name, error.strerror)
        self._loggers[directory] = logger
        logger.watch = self._tasks.spawn(self._watch(logger), logger.name)

    async def sweep(self) -> None:
        """End the programs of earlier daemons that no :meth:`find_again` was about."""
        found = set(self._directory.iterdir()) if await threads.call(self._directory.is_dir) else set()
        for directory in found - self._loggers.keys():
            logger = Logger(("", directory.name), "", "of an earlier daemon", directory)
            logger.running = await threads.call(_noted, directory)
            self._tasks.spawn(self._kill(logger), logger.name)

    # End

    async def kill(self, key: Key, exec_id: str) -> None:
        """End a program that has nothing to read, as its process was not made. Idempotent."""
        if (logger := self._loggers.get(self._path(key, exec_id))) is not None:
            await self._kill(logger)

    async def end(self, key: Key, exec_id: str) -> None:
        """Nothing more is written: wait until its program has read all and is gone; one that stays is killed.

        Idempotent; for the programs of processes that have none, too.
        """
        logger = self._loggers.get(self._path(key, exec_id))
        if logger is None:
            return
        await self._finish(logger)
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIME):
                await _gone(logger)
        if _alive(logger):
            log.warning(
                "%s is killed: it has not ended though there is nothing to read any more", logger.name
            )
        await self._kill(logger, grace=TERM_TIME)

    async def _kill(self, logger: Logger, grace: float = 0) -> None:
        # By one of those who end it at once: the other would find what has its name by then.
        async with logger.ending:
            if not logger.removed:
                await self._remove(logger, grace)
                logger.removed = True

    async def _remove(self, logger: Logger, grace: float) -> None:
        await self._finish(logger)
        if (running := logger.running) is not None:
            await process.kill_pid(running.pid, running.since, grace)
        # One that was started by a daemon which ended before it could note that.
        for pid in await threads.call(process.working_in, logger.directory):
            await process.kill_pid(pid, process.process_start_time(pid))
        if logger.child is not None:
            await logger.child.wait()
        try:
            await threads.call(remove_tree, logger.directory)
        except OSError as error:  # it is no harm but for the files, which the next daemon tries to remove
            log.warning("%s: %s cannot be removed: %s", logger.name, logger.directory, error.strerror)
        self._loggers.pop(logger.directory, None)

    async def _finish(self, logger: Logger) -> None:
        if logger.watch is not None:
            await end(logger.watch)
            logger.watch = None
        _let_go(logger)

    async def _watch(self, logger: Logger) -> None:
        """Have nobody wait for a program that has ended early: what it would have read is dropped."""
        await _gone(logger)
        log.warning("%s has ended before its container: what that writes from now on is lost", logger.name)
        await together(*(_drop(descriptor) for descriptor in logger.held))

    def _path(self, key: Key, exec_id: str) -> Path:
        # The names of all may be longer together than a file's may be.
        return self._directory / hashlib.sha256("/".join((*key, exec_id)).encode()).hexdigest()


def _with_fifos(asked: Stdio, directory: Path) -> Stdio:
    stdout, stderr = (os.fspath(directory / name) for name in _NAMES)
    return msgspec.structs.replace(asked, stdout=stdout, stderr=stderr)


def _furnish(logger: Logger) -> None:
    path = Path(logger.program)
    if not path.is_file() or not os.access(path, os.X_OK):
        raise FailedPrecondition(f"{logger.name} cannot be started: it is not there, or no program")
    try:
        logger.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in _NAMES:
            with suppress(FileExistsError):
                os.mkfifo(logger.directory / name, 0o600)
        _hold(logger)
    except OSError as error:
        raise FailedPrecondition(f"{logger.name} has no place for its FIFOs: {error}") from error


def _hold(logger: Logger) -> None:
    for name in _NAMES:
        logger.held.append(stdio.both_ends(os.fspath(logger.directory / name)))


def _let_go(logger: Logger) -> None:
    while logger.held:
        os.close(logger.held.pop())


def _noted(directory: Path) -> _Running | None:
    try:
        with (directory / _PROCESS).open("rb") as file:
            return msgspec.json.decode(file.read(_LONGEST_NOTE), type=_Running)
    except (OSError, *UNREADABLE):
        return None


def _alive(logger: Logger) -> bool:
    running = logger.running
    return running is not None and process.pid_alive(running.pid, running.since)


async def _gone(logger: Logger) -> None:
    if _alive(logger):
        assert logger.running is not None
        await process.wait_pid(logger.running.pid)
    if logger.child is not None:
        await logger.child.wait()


async def _ready(logger: Logger, told: int, *, strict: bool) -> None:
    """Wait until the program says that it is ready. Raises FailedPrecondition."""
    assert logger.child is not None
    try:
        async with asyncio.timeout(READY_TIME):
            await process.readable(told)
            if os.read(told, 1):
                return
            # The end of the pipe says that it is ready, or that it is no more: such a one has no files left.
            if not strict and await threads.call(_has_files, logger.child.pid):
                return
            status = await logger.child.wait()
    except TimeoutError as error:
        raise FailedPrecondition(
            f"{logger.name} has not said within {READY_TIME:g} seconds that it is ready, "
            "by closing descriptor 5"
        ) from error
    how = f"exit status {status}" if status >= 0 else f"signal {-status}"
    raise FailedPrecondition(f"{logger.name} ended with {how} before it was ready")


def _has_files(pid: int) -> bool:
    try:
        return any(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


async def _drop(descriptor: int) -> None:
    while True:
        await process.readable(descriptor)
        with suppress(BlockingIOError):
            os.read(descriptor, _CHUNK)
