"""Named volumes: what is made, copied, grown and removed is whole, whoever dies or fails in between."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from orlop.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OrlopError,
    ResourceExhausted,
    Unavailable,
)
from orlop.host import threads
from orlop.linux import loop
from orlop.volumes import copying, records
from orlop.volumes.publisher import Publisher
from orlop.volumes.records import Origin, VolumeStep, disk_of, id_of
from orlop.volumes.store import LEAST, MOST, VolumeStore
from tests.patience import PATIENCE

MIB = 1 << 20
SIZE = 32 * MIB


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the power here."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
async def store(tmp_path: Path) -> VolumeStore:
    return await opened(tmp_path)


async def opened(root: Path) -> VolumeStore:
    store = VolumeStore(root)
    await store.open()
    return store


def write(store: VolumeStore, volume: str, data: bytes, at: int = 0) -> None:
    file = os.open(disk_of(store.directory(volume)), os.O_RDWR)
    try:
        os.pwrite(file, data, at)
    finally:
        os.close(file)


def read(store: VolumeStore, volume: str, count: int, at: int = 0) -> bytes:
    with disk_of(store.directory(volume)).open("rb") as file:
        file.seek(at)
        return file.read(count)


@contextmanager
def in_use(store: VolumeStore, volume: str) -> Iterator[None]:
    """As a VM or a loop device has it."""
    file = os.open(disk_of(store.directory(volume)), os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


async def test_a_volume_is_a_sparse_disk_with_a_sound_file_system(store: VolumeStore) -> None:
    made = await store.create("data", SIZE + 1)
    disk = disk_of(store.directory("data"))
    assert (made.size, disk.stat().st_size) == (33 * MIB, 33 * MIB)
    assert blocks(disk) < 6 * MIB
    assert disk.stat().st_mode & 0o777 == 0o600
    assert store.directory("data").stat().st_mode & 0o777 == 0o700
    subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)  # noqa: ASYNC221
    raw = await store.create("raw", LEAST, content="block")
    assert (raw.content, blocks(disk_of(store.directory("raw")))) == ("block", 0)
    assert [one.id for one in store.volumes()] == ["data", "raw"]
    assert await store.available() > 0


async def test_a_repeated_call_finds_the_volume_and_another_is_refused(store: VolumeStore) -> None:
    first = await store.create("data", SIZE)
    assert await store.create("data", SIZE) == first
    assert await store.create("data", SIZE - 5) == first
    for changed in ({"size": 2 * SIZE}, {"content": "block"}, {"whole": True}):
        with pytest.raises(AlreadyExists, match="data"):
            await store.create(**({"name": "data", "size": SIZE} | changed))  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="nothing"):
        await store.create("other", SIZE, origin=Origin(kind="volume", id="nothing"))
    for size in (0, -5, LEAST - 2 * MIB, MOST + 1):
        with pytest.raises(InvalidArgument, match="MiB"):
            await store.create("other", size)


async def test_twenty_calls_at_once_make_one_volume(store: VolumeStore) -> None:
    found = await asyncio.gather(*(store.create("data", SIZE) for _ in range(20)))
    assert len(set(found)) == 1
    await asyncio.gather(*(store.remove("data") for _ in range(20)))
    assert not store.volumes()
    await asyncio.gather(
        *(work for _ in range(10) for work in (_quiet(store.create("data", SIZE)), store.remove("data")))
    )
    assert [one.step for one in store.volumes()] in ([], [VolumeStep.READY])


async def _quiet(work: Awaitable[object]) -> None:
    with suppress(OrlopError):
        await work


def test_names_become_ids_that_are_file_names() -> None:
    assert id_of("pvc-1_2.x") == "pvc-1_2.x"
    odd = {"../../etc", "a/b", ".hidden", "-x", "ä", "a b", "x" * 128 + "", "."}
    found = [id_of(name) for name in sorted(odd)]
    assert len(set(found)) == len(odd)
    assert all(records.check_id(one, "volume") == one for one in found)
    for bad in ("", "x" * 129, "a\nb", "\0", "\x7f", "\x9f"):
        with pytest.raises(InvalidArgument):
            id_of(bad)
    for bad in ("", "..", "a/b", "x" * 129, "a\n"):
        with pytest.raises(NotFound):
            records.check_id(bad, "volume")


async def test_snapshots_and_copies_are_apart_from_what_they_come_from(store: VolumeStore) -> None:
    await store.create("data", SIZE, content="block")
    write(store, "data", b"before", 5 * MIB)
    snapshot = await store.take_snapshot("s", "data")
    assert await store.take_snapshot("s", "data") == snapshot
    write(store, "data", b"after!", 5 * MIB)
    restored = await store.create("old", SIZE, origin=Origin(kind="snapshot", id="s"))
    copied = await store.create("new", 2 * SIZE, origin=Origin(kind="volume", id="data"))
    assert (restored.content, copied.size) == ("block", 2 * SIZE)
    assert read(store, "old", 6, 5 * MIB) == b"before"
    assert read(store, "new", 6, 5 * MIB) == b"after!"
    assert blocks(disk_of(store.directory("new"))) <= MIB, "holes stay holes"
    await store.create("another", SIZE)
    with pytest.raises(AlreadyExists, match="data"):
        await store.take_snapshot("s", "another")
    await store.remove("data")
    assert [one.id for one in store.snapshots()] == ["s"], "a snapshot outlives its volume"
    await store.remove_snapshot("s")
    await store.remove_snapshot("s")
    assert not store.snapshots()


async def test_what_is_used_is_neither_removed_nor_copied_half_written(
    store: VolumeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orlop.volumes.store._BUSY_TIME", 0.05)
    await store.create("data", SIZE, content="block")
    with in_use(store, "data"):
        with pytest.raises(FailedPrecondition, match="in use"):
            await store.remove("data")
        monkeypatch.setattr(copying, "_same_blocks", lambda source, target: False)
        with pytest.raises(FailedPrecondition, match="in use"):
            await store.take_snapshot("s", "data")
        monkeypatch.undo()
        assert (await store.grow("data", 2 * SIZE)).size == 2 * SIZE
    assert not store.snapshots()
    assert not list((store.directory("data").parents[1] / "snapshots").iterdir())
    await store.take_snapshot("s", "data")
    await store.remove("data")
    await store.remove("data")


async def test_growing_goes_one_way(store: VolumeStore) -> None:
    await store.create("data", SIZE)
    assert (await store.grow("data", 2 * SIZE)).size == 2 * SIZE
    assert (await store.grow("data", SIZE)).size == 2 * SIZE
    assert disk_of(store.directory("data")).stat().st_size == 2 * SIZE
    with pytest.raises(NotFound):
        await store.grow("nothing", SIZE)
    with pytest.raises(InvalidArgument):
        await store.grow("data", MOST + 1)


async def test_a_cancelled_copy_stops_and_leaves_nothing(
    store: VolumeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of it is waited for, not all."""
    await store.create("data", SIZE, content="block")
    write(store, "data", os.urandom(SIZE))
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    parts: list[int] = []
    plain = os.copy_file_range

    def slow(source: int, target: int, count: int, *at: int) -> int:
        parts.append(count)
        loop.call_soon_threadsafe(begun.set)
        while not cancelled:  # the copy is still at its first part when it is cancelled
            pass
        return plain(source, target, count, *at)

    cancelled: list[bool] = []
    monkeypatch.setattr(copying, "_same_blocks", lambda source, target: False)
    monkeypatch.setattr(copying, "_CHUNK", MIB)
    monkeypatch.setattr(copying.os, "copy_file_range", slow)
    copy = asyncio.ensure_future(store.take_snapshot("s", "data"))
    async with asyncio.timeout(20 * PATIENCE):
        await begun.wait()
        copy.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        cancelled.append(True)
        with pytest.raises(asyncio.CancelledError):
            await copy
    assert len(parts) < SIZE // MIB
    assert not store.snapshots()
    assert not list((store.directory("data").parents[1] / "snapshots").iterdir())
    monkeypatch.undo()
    await store.take_snapshot("s", "data")


LOOKS = ("_lock", "points_from", "_mounted")
"""Steps that change nothing, and need nothing that runs out."""


class Faults:
    """Counts the steps that change anything, and fails at one of them: before it, or after it was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.at, self.dead, self.deadly, self.after = 0, -1, False, False, False
        plain = threads.call

        async def call(function: Callable[..., Any], *args: Any, **words: Any) -> Any:
            if function.__name__ in LOOKS:
                return await plain(function, *args, **words)
            self._step(before=True)
            result = await plain(function, *args, **words)
            self._step(before=False)
            return result

        monkeypatch.setattr(threads, "call", call)

    def _step(self, *, before: bool) -> None:
        if self.dead:
            raise Killed
        if before:
            self.steps += 1
        if self.steps == self.at and before is not self.after:
            self.at = -1 if not self.deadly else self.at
            self.dead = self.deadly
            raise Killed if self.deadly else OSError(errno.ENOSPC, "No space left on device")

    def arm(self, step: int, *, deadly: bool, after: bool = False) -> None:
        self.steps, self.at, self.dead, self.deadly, self.after = 0, step, False, deadly, after


class Killed(BaseException):
    """The daemon is gone: nothing of it runs any more."""


async def life(store: VolumeStore) -> None:
    """Everything that a volume can be asked for."""
    await store.create("fs", LEAST)
    await store.create("data", SIZE, content="block")
    await store.take_snapshot("s", "data")
    await store.create("copy", SIZE, origin=Origin(kind="volume", id="data"))
    await store.create("old", SIZE, origin=Origin(kind="snapshot", id="s"))
    await store.grow("old", 2 * SIZE)
    await store.remove("data")
    await store.remove_snapshot("s")
    await store.remove("copy")


def check(root: Path, store: VolumeStore) -> None:
    """What is shown is whole, and there is nothing else."""
    for place, known in (("volumes", store.volumes()), ("snapshots", store.snapshots())):
        assert sorted(path.name for path in (root / place).iterdir()) == [one.id for one in known]
        for one in known:
            directory = root / place / one.id
            assert disk_of(directory).stat().st_size == one.size
            assert sorted(path.name for path in directory.iterdir()) == ["data", "record.json"]
            if one.content == "filesystem":
                subprocess.run(["e2fsck", "-fn", disk_of(directory)], check=True, capture_output=True)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_daemon_that_is_killed_at_any_step_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    faults = Faults(monkeypatch)
    for step in range(1, 200):
        root = tmp_path / str(step)
        root.mkdir()
        faults.arm(-1, deadly=True)
        store = await opened(root)
        faults.arm(step, deadly=True, after=after)
        try:
            await life(store)
        except Killed:
            pass
        else:
            assert step > 30, "there are as many steps"
            return
        faults.arm(-1, deadly=True)
        later = await opened(root)
        check(root, later)
        await life(later)
        check(root, later)
        assert [one.id for one in later.volumes()] == ["fs", "old"]
    pytest.fail("it never came to its end")


async def test_a_step_that_fails_leaves_nothing_half_made_and_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch)
    for step in range(1, 200):
        root = tmp_path / str(step)
        root.mkdir()
        faults.arm(-1, deadly=False)
        store = await opened(root)
        faults.arm(step, deadly=False)
        try:
            await life(store)
        except (ResourceExhausted, Unavailable, OSError) as error:
            assert not isinstance(error, OSError), "the daemon's own words for it"
        else:
            assert step > 30
            return
        faults.arm(-1, deadly=False)
        await life(store)
        check(root, store)
        check(root, await opened(root))
    pytest.fail("it never came to its end")


async def test_a_damaged_record_costs_nobody_the_data(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.create("data", SIZE, content="block")
    write(store, "data", b"precious")
    (store.directory("data") / "record.json").write_bytes(b"{")
    later = await opened(tmp_path)
    assert not later.volumes()
    with pytest.raises(AlreadyExists, match="log"):
        await later.create("data", SIZE)
    assert read(later, "data", 8) == b"precious"


@pytest.mark.parametrize("kind", ["snapshot", "copy"])
async def test_a_copy_of_what_grows_meanwhile_is_not_cut_off(store: VolumeStore, kind: str) -> None:
    await store.create("a", SIZE, content="block")

    def begun() -> asyncio.Task[Any]:
        if kind == "snapshot":
            return asyncio.create_task(store.take_snapshot("b", "a"))
        return asyncio.create_task(
            store.create("b", SIZE, content="block", origin=Origin(kind="volume", id="a"))
        )

    async with store.turn("a"):
        growing = asyncio.create_task(store.grow("a", 2 * SIZE))
        await asyncio.sleep(0)
        copying_of_it = begun()
        await asyncio.sleep(0)
    await growing
    with pytest.raises(Unavailable, match="has grown meanwhile"):
        await copying_of_it
    again = await begun()
    assert again.size == 2 * SIZE


async def test_a_copy_of_itself_waits_for_nobody(store: VolumeStore) -> None:
    await store.create("a", SIZE, content="block")
    async with store.turn("a"):
        removing = asyncio.create_task(store.remove("a"))
        await asyncio.sleep(0)
        own = asyncio.create_task(store.create("a", SIZE, origin=Origin(kind="volume", id="a")))
        await asyncio.sleep(0)
    await removing
    with pytest.raises(NotFound):
        await asyncio.wait_for(own, 20 * PATIENCE)


async def test_a_device_that_cannot_be_looked_at_keeps_no_daemon_from_its_start(
    store: VolumeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("block", SIZE, content="block")
    await store.create("files", SIZE)
    monkeypatch.setattr(loop, "devices_of", lambda path: [f"{tmp_path}/loop99"])
    again = await opened(tmp_path)
    await Publisher(again).open()
    assert [one.id for one in again.volumes()] == ["block", "files"]
