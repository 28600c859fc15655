"""The journal: what the daemon is about to do, and what it knows, on disk.

One SQLite file in WAL mode holds each pod and each container as one JSON record. A record is
written before the step it announces is taken, so that a daemon killed at any point finds, at its
next start, at least a record of everything it may have half made.

``synchronous=NORMAL``: a commit then costs a write, not an fsync (0.1 ms instead of several).
A killed daemon loses nothing, because the kernel has the pages. A power failure may lose the last
commits, but never damages the file, and takes every pod with it anyway.

All of SQLite happens in one thread that owns the connection; writes that queue up while it works
share the next commit.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from orlop.errors import Internal, ResourceExhausted
from orlop.host import threads
from orlop.pods.records import ContainerRecord, PodRecord
from orlop.value import UNREADABLE

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2

CHECKPOINT_EVERY = 500
"""Commits after which the log is written back into the file, by the writer when it is idle."""

CHECKPOINT_AT_LAST = 5000
"""The same, even when it is not idle."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pods (id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS containers (
    id TEXT PRIMARY KEY, pod_id TEXT NOT NULL, record BLOB NOT NULL) WITHOUT ROWID;
"""


class Contents(NamedTuple):
    """All that the journal knows."""

    pods: list[PodRecord]
    containers: list[ContainerRecord]


_PUT_POD = "INSERT OR REPLACE INTO pods VALUES (?, ?)"
_PUT_CONTAINER = "INSERT OR REPLACE INTO containers VALUES (?, ?, ?)"

_Statement = tuple[str, tuple[str | bytes, ...]]


class _Write(NamedTuple):
    """What is in the journal as a whole, or not at all."""

    statements: tuple[_Statement, ...]
    done: Future[None]


class Journal:
    """The file ``path``; :meth:`open` before use, :meth:`close` after it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.set_aside: Path | None = None
        """Where a damaged journal was moved to at :meth:`open`, if it was."""

    async def open(self) -> Contents:
        """Read everything and start the writer. A damaged file is set aside, with a message."""
        opened: Future[Contents] = Future()
        self._thread = threading.Thread(target=self._work, args=(opened,), name="journal", daemon=True)
        self._thread.start()
        return await asyncio.wrap_future(opened)

    async def close(self) -> None:
        """Write what is queued and let go of the file."""
        if self._thread is not None:
            self._queue.put(None)
            thread, self._thread = self._thread, None
            await threads.call(thread.join)

    async def put_pod(self, record: PodRecord) -> None:
        """Insert or replace a pod. ResourceExhausted when the disk does not take it."""
        await self._write(_pod(record))

    async def put_container(self, record: ContainerRecord) -> None:
        """Insert or replace a container. ResourceExhausted when the disk does not take it."""
        await self._write(_container(record))

    async def put_together(self, pod: PodRecord, container: ContainerRecord) -> None:
        """Replace both or neither."""
        await self._write(_pod(pod), _container(container))

    async def delete_pod(self, pod_id: str) -> None:
        """Forget a pod."""
        await self._write(("DELETE FROM pods WHERE id = ?", (pod_id,)))

    async def delete_container(self, container_id: str) -> None:
        """Forget a container."""
        await self._write(("DELETE FROM containers WHERE id = ?", (container_id,)))

    async def _write(self, *statements: _Statement) -> None:
        if self._thread is None:
            raise Internal(f"journal {self._path} is not open")
        done: Future[None] = Future()
        self._queue.put(_Write(statements, done))
        # Shielded: a cancelled caller must not turn a queued write into a skipped one.
        await asyncio.shield(asyncio.wrap_future(done))

    def _work(self, opened: Future[Contents]) -> None:
        """The writer thread: open, then commit batches until told to end."""
        try:
            connection, contents = self._open_or_replace()
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(contents)
        try:
            commits = 0
            while self._commit_batch(connection):
                commits += 1
                # The one step that has to wait for the disk (fsync): never before an answer.
                idle = self._queue.empty()
                if commits >= (CHECKPOINT_EVERY if idle else CHECKPOINT_AT_LAST):
                    self._checkpoint(connection)
                    commits = 0
        finally:
            connection.close()

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move what was committed from the log to the file. A disk that is full now may have room later."""
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            log.warning("journal %s keeps growing: %s", self._path, error)

    def _commit_batch(self, connection: sqlite3.Connection) -> bool:
        """Commit what is queued as one transaction; False when the end was asked for."""
        batch: list[_Write] = []
        more = True
        item = self._queue.get()
        while True:
            if item is None:
                more = False
            else:
                batch.append(item)
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
        if batch:
            _commit(connection, batch, self._path)
        return more

    def _open_or_replace(self) -> tuple[sqlite3.Connection, Contents]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return self._open_file()
        except (sqlite3.DatabaseError, *UNREADABLE) as error:
            if isinstance(error, sqlite3.OperationalError):
                raise Internal(f"journal {self._path} cannot be opened: {error}") from error
            aside = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns()}")
            log.error(
                "journal %s is damaged (%s); it is kept as %s and a new one is begun without its pods",
                self._path,
                error,
                aside,
            )
            self._path.rename(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self.set_aside = aside
            return self._open_file()

    def _open_file(self) -> tuple[sqlite3.Connection, Contents]:
        # Containers' environment is in it. What SQLite puts beside it gets the mode of the file.
        os.close(os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.execute("PRAGMA cache_size=-256")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise Internal(
                    f"journal {self._path} was written by a newer version (schema {version}, this one knows "
                    f"{SCHEMA_VERSION}); upgrade again, or move the file away after removing all pods"
                )
            (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise sqlite3.DatabaseError(state)
            connection.executescript(_SCHEMA)
            if version == 1:
                _to_roots_and_sinks(connection)
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            return connection, _read(connection)
        except BaseException:
            connection.close()
            raise


def _pod(record: PodRecord) -> _Statement:
    return _PUT_POD, (record.id, msgspec.json.encode(record))


def _container(record: ContainerRecord) -> _Statement:
    return _PUT_CONTAINER, (record.id, record.pod_id, msgspec.json.encode(record))


def _to_roots_and_sinks(connection: sqlite3.Connection) -> None:
    """Schema 1 had a container's layers and its log in the specification itself."""
    connection.execute("BEGIN IMMEDIATE")
    for container_id, raw in connection.execute("SELECT id, record FROM containers").fetchall():
        record = msgspec.json.decode(raw)
        spec = record["spec"]
        if layers := spec.pop("layers", None):
            spec["root"] = {"layers": layers}
        if path := spec.pop("log_path", None):
            spec["sink"] = {"log": path}
        connection.execute(
            "UPDATE containers SET record = ? WHERE id = ?", (msgspec.json.encode(record), container_id)
        )
    connection.execute("COMMIT")


def _read(connection: sqlite3.Connection) -> Contents:
    pod: Callable[[bytes], PodRecord] = msgspec.json.Decoder(PodRecord).decode
    container: Callable[[bytes], ContainerRecord] = msgspec.json.Decoder(ContainerRecord).decode
    return Contents(
        [pod(row[0]) for row in connection.execute("SELECT record FROM pods")],
        [container(row[0]) for row in connection.execute("SELECT record FROM containers")],
    )


def _commit(connection: sqlite3.Connection, batch: list[_Write], path: Path) -> None:
    try:
        connection.execute("BEGIN IMMEDIATE")
        for write in batch:
            for statement, values in write.statements:
                connection.execute(statement, values)
        connection.execute("COMMIT")
    except Exception as error:  # whatever it is: the writer goes on, and nobody waits for ever
        with suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        failure = ResourceExhausted(f"journal {path} cannot be written: {error}")
        for write in batch:
            if write.done.set_running_or_notify_cancel():
                write.done.set_exception(failure)
    else:
        for write in batch:
            if write.done.set_running_or_notify_cancel():
                write.done.set_result(None)
