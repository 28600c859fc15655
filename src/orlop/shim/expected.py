"""Tasks that containerd has announced and not made yet, in files: the next daemon is to know them too.

What is known of a task that was made is in the engine's own record.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from orlop.errors import of_system
from orlop.host import files, threads
from orlop.sandbox.spec import PodSpec
from orlop.shim.model import Key
from orlop.value import UNREADABLE, Value

log = logging.getLogger(__name__)

PLACE = "shim-expected"
"""The directory, in that of the daemon's state."""

MOST = 4096
"""Those that are kept; the oldest are forgotten then."""

_LONGEST = 1 << 20


class ExpectedTask(Value, frozen=True):
    """A task to come. ``events`` is the path of containerd's socket for events. ``bundle`` and ``sandbox``
    are of a sandbox that was described and not started: containerd's directory for it, and its VM."""

    namespace: str
    id: str
    events: str = ""
    bundle: str = ""
    sandbox: PodSpec | None = None

    @property
    def key(self) -> Key:
        """Its name among all."""
        return self.namespace, self.id


class ExpectedTasks:
    """All of them, below ``state``. The file is there before anybody is told that the task is expected."""

    def __init__(self, state: Path) -> None:
        self._directory = state / PLACE
        self._tasks: dict[Key, ExpectedTask] = {}
        self._turn = asyncio.Lock()

    async def load(self) -> None:
        """Know those of an earlier daemon again. What cannot be read is logged and forgotten."""
        found = await threads.call(self._load)
        self._tasks = {task.key: task for task in found}

    def get(self, key: Key) -> ExpectedTask | None:
        """The one of that name."""
        return self._tasks.get(key)

    @property
    def names(self) -> list[Key]:
        """Those of all."""
        return list(self._tasks)

    async def put(self, task: ExpectedTask) -> None:
        """Expect a task, in the place of one of its name. Raises FailedPrecondition, ResourceExhausted."""
        async with self._turn:
            while len(self._tasks) >= MOST and task.key not in self._tasks:
                await self._forget(next(iter(self._tasks)))
            try:
                await threads.call(self._save, task)
            except OSError as error:
                raise of_system(
                    error, f"task {task.id} cannot be noted in {self._directory}: {error.strerror}"
                ) from error
            self._tasks[task.key] = task

    async def drop(self, key: Key) -> None:
        """Expect it no more: it was made, or given up. Idempotent."""
        async with self._turn:
            if key in self._tasks:
                await self._forget(key)

    async def _forget(self, key: Key) -> None:
        try:
            await threads.call(self._path(key).unlink, missing_ok=True)
        except OSError as error:  # the next daemon may expect it for ever: no harm but for the file
            log.warning("%s cannot be removed: %s", self._path(key), error.strerror)
        self._tasks.pop(key, None)

    def _path(self, key: Key) -> Path:
        # The names of two may be longer together than a file's may be.
        return self._directory / f"{hashlib.sha256('/'.join(key).encode()).hexdigest()}.json"

    def _save(self, task: ExpectedTask) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        files.save(self._path(task.key), msgspec.json.encode(task))

    def _load(self) -> list[ExpectedTask]:
        try:
            paths = sorted(self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            log.warning("%s cannot be read: %s", self._directory, error.strerror)
            return []
        return [task for path in paths for task in self._read(path)]

    def _read(self, path: Path) -> Iterator[ExpectedTask]:
        try:
            with path.open("rb") as file:
                task = msgspec.json.decode(file.read(_LONGEST), type=ExpectedTask)
            if self._path(task.key) == path:
                yield task
                return
            reason = "it is not that task's"  # but what a save that was cut short has left
        except (OSError, *UNREADABLE) as error:
            reason = str(error)
        log.warning("%s says nothing of a task: %s", path, reason)
        with suppress(OSError):
            path.unlink()
