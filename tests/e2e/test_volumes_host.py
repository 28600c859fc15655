"""Named volumes on the host: mounted from loop devices, shown to pods, grown and copied while in use."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from orlop.host import mounts
from orlop.linux import loop
from orlop.volumes import copying, freezing
from orlop.volumes.publisher import Publisher
from orlop.volumes.records import Origin, disk_of
from orlop.volumes.store import VolumeStore
from tests.patience import PATIENCE

MIB = 1 << 20
SIZE = 64 * MIB
CAP_SYS_RESOURCE = 24


def may_resize() -> bool:
    """ext4 is grown while it is mounted only by whoever has CAP_SYS_RESOURCE."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (mask,) = [int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")]
    return bool(mask >> CAP_SYS_RESOURCE & 1)


class Place:
    """A store, and directories as a kubelet has them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = VolumeStore(root / "store")
        self.publisher = Publisher(self.store)
        self.staging, self.pods = root / "staging", root / "pods"
        self.staging.mkdir()
        self.pods.mkdir()

    def disk(self, volume: str) -> Path:
        return disk_of(self.store.directory(volume))

    def devices(self, volume: str) -> list[str]:
        return loop.devices_of(os.fspath(self.disk(volume)))

    async def let_go(self, volume: str) -> None:
        """Wait until nothing has the disk: what becomes a VM has all mounts of the host for a moment."""
        async with asyncio.timeout(20 * PATIENCE):
            while self.devices(volume):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def mounted(self, volume: str, pod: str = "pod") -> Path:
        await self.publisher.stage(volume, f"{self.staging}/{volume}")
        target = self.pods / f"{pod}-{volume}"
        await self.publisher.publish(volume, str(target), staged=f"{self.staging}/{volume}")
        return target

    async def taken_away(self, volume: str, pod: str = "pod") -> None:
        await self.publisher.unpublish(volume, f"{self.pods}/{pod}-{volume}")
        await self.publisher.unstage(volume, f"{self.staging}/{volume}")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    await place.store.open()
    yield place
    mounts.unmount_below(tmp_path)
    for volume in place.store.volumes():
        for device in place.devices(volume.id):
            loop.detach(device)


async def test_a_file_system_is_mounted_shown_and_taken_away(place: Place) -> None:
    await place.store.create("data", SIZE)
    first = await place.mounted("data")
    (first / "hello").write_text("world")
    assert await place.mounted("data") == first, "a repeated call does nothing"
    second = await place.mounted("data", "other")
    assert (second / "hello").read_text() == "world"
    assert sorted(path.name for path in first.iterdir()) == ["hello"]
    assert os.statvfs(first).f_flag & os.ST_NODEV and os.statvfs(first).f_flag & os.ST_NOSUID
    assert len(place.devices("data")) == 1
    use = await place.publisher.usage("data", str(first))
    assert 40 * MIB < use.total <= SIZE and 0 < use.free <= use.total and use.inodes > use.inodes_free > 0
    with pytest.raises(FailedPrecondition, match="in use"):
        await place.store.remove("data")
    with pytest.raises(AlreadyExists, match="other rights"):
        await place.publisher.publish("data", str(first), staged=f"{place.staging}/data", read_only=True)
    await place.taken_away("data")
    await place.taken_away("data")
    assert not first.exists() and (second / "hello").exists()
    await place.publisher.unpublish("data", str(second))
    await place.let_go("data")
    again = await place.mounted("data")
    assert (again / "hello").read_text() == "world"
    await place.taken_away("data")
    await place.let_go("data")
    await place.store.remove("data")
    assert not place.store.directory("data").exists()


async def test_read_only_is_read_only(place: Place) -> None:
    await place.store.create("data", SIZE)
    await place.publisher.stage("data", f"{place.staging}/data")
    target = place.pods / "reader"
    for _ in range(2):
        await place.publisher.publish("data", str(target), staged=f"{place.staging}/data", read_only=True)
    with pytest.raises(OSError, match="Read-only"):
        (target / "x").touch()


async def test_calls_against_one_another_on_one_volume(place: Place) -> None:
    """Any number of pods that come and go at once leave nothing behind, and never hinder each other."""
    await place.store.create("data", SIZE)

    async def pod(number: int) -> None:
        target = await place.mounted("data", f"pod{number}")
        (target / str(number)).touch()
        await place.publisher.unpublish("data", str(target))

    await asyncio.gather(*(pod(number) for number in range(12)))
    await place.publisher.unstage("data", f"{place.staging}/data")
    for _ in range(8):
        # The device of the last mount goes while the next one looks for it.
        await place.mounted("data")
        await place.taken_away("data")
    target = await place.mounted("data")
    assert len(list(target.iterdir())) == 12
    await place.taken_away("data")
    assert mounts.mounts_below(place.root) == []


async def test_a_vm_and_the_host_exclude_each_other(place: Place) -> None:
    await place.store.create("data", SIZE)
    file = os.open(place.disk("data"), os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FailedPrecondition, match="in use"):
            await place.publisher.stage("data", f"{place.staging}/data")
    finally:
        os.close(file)
    await place.mounted("data")
    file = os.open(place.disk("data"), os.O_RDWR)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(file)


async def test_the_disk_of_a_whole_volume_is_where_a_vm_finds_it(place: Place) -> None:
    await place.store.create("data", SIZE, whole=True)
    target = await place.mounted("data")
    assert (target / ".orlop-volume").samefile(place.disk("data"))
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert await place.mounted("data") == target
    assert (await place.publisher.usage("data", str(target))).total == SIZE
    with pytest.raises(FailedPrecondition, match="pods may find it at"):
        await place.store.remove("data")
    await place.taken_away("data")
    await place.store.remove("data")


async def test_a_block_volume_is_a_device(place: Place) -> None:
    await place.store.create("raw", SIZE, content="block")
    target = place.pods / "device"
    for _ in range(2):
        await place.publisher.publish("raw", str(target))
    assert stat.S_ISBLK(target.stat().st_mode)
    target.open("r+b").write(b"bytes")
    second = place.pods / "second"
    await place.publisher.publish("raw", str(second))
    assert second.open("rb").read(5) == b"bytes"
    with pytest.raises(FailedPrecondition, match="all or none"):
        await place.publisher.publish("raw", f"{place.pods}/third", read_only=True)
    assert not (place.pods / "third").exists()
    with pytest.raises(NotFound, match="is not at"):
        await place.publisher.expand("raw", f"{place.pods}/elsewhere", 2 * SIZE)
    assert place.disk("raw").stat().st_size == SIZE
    assert (await place.publisher.expand("raw", str(target), 2 * SIZE)).size == 2 * SIZE
    size = subprocess.run(["blockdev", "--getsize64", target], capture_output=True, check=True)  # noqa: ASYNC221
    assert int(size.stdout) == 2 * SIZE
    await place.publisher.unpublish("raw", str(target))
    assert len(place.devices("raw")) == 1
    await place.publisher.unpublish("raw", str(second))
    await place.publisher.unpublish("raw", str(second))
    await place.let_go("raw")
    assert list(place.pods.iterdir()) == []
    assert place.disk("raw").open("rb").read(5) == b"bytes"


async def test_a_daemon_that_ended_with_a_device_in_hand(place: Place) -> None:
    await place.store.create("raw", SIZE, content="block")
    file = os.open(place.disk("raw"), os.O_RDWR)
    _, descriptor = loop.attach(file)
    os.close(descriptor)
    os.close(file)
    assert len(place.devices("raw")) == 1
    await Publisher(place.store).open()
    await place.let_go("raw")


async def test_a_volume_that_grew_is_larger_when_it_is_mounted_next(place: Place) -> None:
    await place.store.create("data", SIZE)
    (await place.mounted("data") / "kept").write_text("kept")
    await place.taken_away("data")
    await place.let_go("data")
    await place.store.grow("data", 3 * SIZE)
    target = await place.mounted("data")
    assert (await place.publisher.usage("data", str(target))).total > 2 * SIZE
    assert (target / "kept").read_text() == "kept"
    await place.publisher.expand("data", str(target))


async def test_a_volume_grows_while_it_is_mounted(place: Place) -> None:
    await place.store.create("data", SIZE)
    target = await place.mounted("data")
    if not may_resize():
        with pytest.raises(FailedPrecondition, match="mounted next"):
            await place.publisher.expand("data", str(target), 3 * SIZE)
        assert place.store.volume("data").size == 3 * SIZE
        return
    await place.publisher.expand("data", str(target), 3 * SIZE)
    assert (await place.publisher.usage("data", str(target))).total > 2 * SIZE


async def test_a_snapshot_of_what_is_written_to_is_of_one_moment(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a file system that can copy at one moment, writers wait."""
    monkeypatch.setattr(copying, "_same_blocks", lambda source, target: False)
    await place.store.create("data", SIZE)
    target = await place.mounted("data")
    (target / "before").write_text("x" * 100_000)
    await place.store.take_snapshot("s", "data")
    (target / "after").touch()
    await place.store.create("old", SIZE, origin=Origin(kind="snapshot", id="s"))
    subprocess.run(["e2fsck", "-fp", place.disk("old")], capture_output=True, check=False)  # noqa: ASYNC221
    restored = await place.mounted("old")
    assert [path.name for path in restored.iterdir()] == ["before"]
    assert (restored / "before").read_text() == "x" * 100_000


async def test_whoever_was_killed_while_it_stood_still_leaves_it_going(place: Place) -> None:
    await place.store.create("data", SIZE)
    target = await place.mounted("data")
    staged = place.staging / "data"
    freezing._order(staged, freezing._FREEZE)
    later = VolumeStore(place.root / "store")
    await later.open()
    (target / "goes").write_text("on")


async def test_paths_of_others_are_left_alone(place: Place, tmp_path: Path) -> None:
    await place.store.create("data", SIZE)
    await place.store.create("other", SIZE)
    there = await place.mounted("other")
    for bad in ("/", "/etc", "relative/path", f"{tmp_path}/../x"):
        with pytest.raises(NotFound):
            await place.publisher.stage("data", bad)
        with pytest.raises(NotFound):
            await place.publisher.unpublish("data", bad)
    for call in (place.publisher.unpublish, place.publisher.unstage, place.publisher.stage):
        with pytest.raises(FailedPrecondition, match="something else"):
            await call("data", str(there))
        with pytest.raises(FailedPrecondition, match="something else"):
            await call("data", "/proc/sys" if mounts.is_mounted("/proc/sys") else "/dev/shm")
    kept = tmp_path / "pods" / "full"
    kept.mkdir()
    (kept / "file").write_text("kept")
    with pytest.raises(FailedPrecondition):
        await place.publisher.unpublish("data", str(kept))
    assert (kept / "file").read_text() == "kept"
    with pytest.raises(FailedPrecondition, match="not staged"):
        await place.publisher.publish("data", f"{place.pods}/x", staged=f"{place.staging}/nothing")
    with pytest.raises(InvalidArgument, match="mount option"):
        await place.publisher.stage("data", f"{place.staging}/data", ("loop=/dev/sda",))
    assert place.devices("data") == []
