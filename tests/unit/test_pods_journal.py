"""The journal: what it is told it knows again, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path

import msgspec
import pytest

from orlop.errors import Internal, ResourceExhausted
from orlop.pods import journal as journals
from orlop.pods.journal import Journal
from orlop.pods.records import ContainerPhase, ContainerRecord, PodPhase, PodRecord
from orlop.sandbox.spec import ContainerSpec, Mount, PodSpec, Root, Sink


def pod(number: int, phase: PodPhase = PodPhase.READY) -> PodRecord:
    spec = PodSpec(id=f"{number:064x}", name=f"p{number}", namespace="n", uid="u", labels={"a": "ü"})
    return PodRecord(spec=spec, phase=phase, created_at=number)


def container(number: int) -> ContainerRecord:
    spec = ContainerSpec(
        id=f"{number:064x}",
        pod_id="0" * 64,
        name="c",
        env=(("A", b"\xff\x00"),),
        mounts=(Mount(container_path="/v", host_path="/h"),),
    )
    return ContainerRecord(spec=spec, phase=ContainerPhase.CREATED, created_at=number, labels={"x": "y"})


async def test_everything_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "journal.db"
    journal = Journal(path)
    assert await journal.open() == ([], [])
    await asyncio.gather(*(journal.put_pod(pod(number)) for number in range(50)))
    await journal.put_container(container(1))
    await journal.put_pod(pod(1, PodPhase.REMOVING))
    await journal.delete_pod(pod(2).id)
    await journal.close()
    pods, containers = await Journal(path).open()
    assert len(pods) == 49 and pod(1, PodPhase.REMOVING) in pods
    assert containers == [container(1)]


async def test_a_journal_of_the_first_schema_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    await journal.open()
    await journal.put_container(container(1))
    await journal.close()
    with sqlite3.connect(path) as other:
        (raw,) = other.execute("SELECT record FROM containers").fetchone()
        record = msgspec.json.decode(raw)
        record["spec"] |= {"layers": ["/a", "/b"], "log_path": "/logs/0.log"}
        other.execute("UPDATE containers SET record = ?", (msgspec.json.encode(record),))
        other.execute("PRAGMA user_version=1")
    for _ in range(2):
        journal = Journal(path)
        ((), (found,)) = await journal.open()
        await journal.close()
        assert found.spec.root == Root(layers=("/a", "/b"))
        assert found.spec.sink == Sink(log="/logs/0.log")
        assert found.spec.env == container(1).spec.env


async def test_a_write_costs_less_than_a_millisecond(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    await journal.open()
    # The processor's time leaves out what other processes of the machine do; there is room for slow ones.
    begun = time.process_time()
    for number in range(200):
        await journal.put_container(container(number))
    assert (time.process_time() - begun) / 200 < 0.005
    await journal.close()


async def test_a_write_that_fails_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    await journal.open()
    with sqlite3.connect(tmp_path / "journal.db") as other:
        other.execute("DROP TABLE pods")
    with pytest.raises(ResourceExhausted, match="cannot be written"):
        await journal.put_pod(pod(1))
    await journal.put_container(container(1))
    await journal.close()


class Connection:
    """A connection on a disk that is full, or a machine that is out of memory, for some statements."""

    def __init__(self, connection: sqlite3.Connection, failing: dict[str, Exception]) -> None:
        self._connection = connection
        self._failing = failing

    def execute(self, statement: str, *values: object) -> object:
        for words, error in self._failing.items():
            if words in statement:
                raise error
        return self._connection.execute(statement, *values)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("wal_checkpoint", sqlite3.OperationalError("database or disk is full")),
        ("DELETE FROM pods", MemoryError()),
        ("DELETE FROM pods", sqlite3.OperationalError("disk I/O error")),
    ],
)
async def test_the_writer_outlives_every_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, error: Exception
) -> None:
    """A write is answered, with success or failure: the pod's calls wait for it."""
    monkeypatch.setattr(journals, "CHECKPOINT_EVERY", 1)
    journal = Journal(tmp_path / "journal.db")
    open_file = journal._open_or_replace

    def opened() -> object:
        connection, contents = open_file()
        return Connection(connection, {words: error}), contents

    monkeypatch.setattr(journal, "_open_or_replace", opened)
    await journal.open()
    async with asyncio.timeout(20):
        for number in range(1, 4):
            await journal.put_pod(pod(number))
            with contextlib.suppress(ResourceExhausted):
                await journal.delete_pod(pod(99).id)
    await journal.close()
    again = Journal(tmp_path / "journal.db")
    assert len((await again.open()).pods) == 3
    await again.close()


async def test_a_cancelled_write_is_done_all_the_same(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    await journal.open()
    writing = asyncio.ensure_future(journal.put_pod(pod(1)))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await journal.close()
    again = Journal(tmp_path / "journal.db")
    assert (await again.open()).pods == [pod(1)]
    await again.close()


@pytest.mark.parametrize("damage", [b"", b"garbage" * 4096, b"SQLite format 3\0" + b"\xff" * 8192])
async def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(damage)
    journal = Journal(path)
    assert await journal.open() == ([], [])
    await journal.put_pod(pod(1))
    await journal.close()
    assert (journal.set_aside is not None) == bool(damage)
    if journal.set_aside is not None:
        assert journal.set_aside.read_bytes() == damage


async def test_records_of_another_shape_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    await journal.open()
    await journal.close()
    with sqlite3.connect(path) as other:
        other.execute("INSERT INTO pods VALUES ('x', ?)", (b'{"phase": "flying"}',))
    journal = Journal(path)
    assert await journal.open() == ([], [])
    await journal.close()
    assert journal.set_aside is not None


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version=99")
    with pytest.raises(Internal, match="newer version"):
        await Journal(path).open()
    with pytest.raises(Internal, match="not open"):
        await Journal(path).put_pod(pod(1))
