"""Which volumes a guest is to hold, and what a later daemon makes of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from orlop.config import VolumeConfig
from orlop.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from orlop.host.watching import Watcher
from orlop.hypervisor.base import Machine
from orlop.linux.usage import Usage
from orlop.pods.containers import KILL_GRACE
from orlop.sandbox.spec import ContainerSpec, IdMapping, Mount
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.files import PodFile, PodFiles
from orlop.sandbox.vm.volumes import Volumes
from orlop.storage.snapshot import DISK
from orlop.volumes import shown
from orlop.volumes.records import VolumeUse
from orlop.volumes.store import VolumeStore
from orlop.wire import messages
from orlop.wire.hello import FEATURES, MANY_VOLUMES, Hello
from orlop.wire.messages import (
    Drop,
    DropAll,
    Fetch,
    Fill,
    FillAll,
    Hold,
    Stats,
)
from orlop.wire.statistics import VolumeFill
from tests.patience import until
from tests.unit.test_vm_plugs import FakeMachine
from tests.volumes.kubelet import PodDirectory


@dataclass
class Agent:
    """Agrees to everything, and says what it was asked. ``needs`` is how many seconds it takes to fetch."""

    hello: Hello = field(default_factory=lambda: Hello(features=FEATURES))
    asked: list[Any] = field(default_factory=list)
    closed: bool = False
    fails: bool = False
    needs: float = 0
    fills: tuple[VolumeFill, ...] = ()

    async def call(self, request: Any, timeout: float = 0) -> Any:
        if self.fails:
            raise Unavailable("the agent is gone")
        if isinstance(request, Fetch) and timeout < self.needs:
            raise DeadlineExceeded("the agent did not answer fetch")
        self.asked.append(request)
        if isinstance(request, Stats):
            return messages.StatsReply(pod=Usage(timestamp=0), volumes=self.fills)
        return messages.FetchReply(data=b"said") if isinstance(request, Fetch) else messages.Done()


@dataclass
class Bed:
    """A pod's volumes, and all around them."""

    place: Path
    agent: Agent = field(default_factory=Agent)
    machine: FakeMachine = field(default_factory=lambda: FakeMachine(9))
    watcher: Watcher = field(default_factory=Watcher)
    names: Watcher = field(default_factory=lambda: Watcher(once=True))

    def __post_init__(self) -> None:
        self.kubelet = PodDirectory(self.place / "kubelet", "uid-1")
        self.files = PodFiles(self.place / "state", "pod")
        self.files.write(PodFile(pod_id="pod"))

    def daemon(self, **config: Any) -> Volumes:
        """The volumes as a daemon begins with them."""
        return Volumes(
            cast(Machine, self.machine),
            cast(AgentClient, self.agent),
            self.files,
            self.watcher,
            names=self.names,
            uid="uid-1",
            config=VolumeConfig(empty_dir_mib=16, **config),
            workplace=self.place,
            named=self.place / "named",
        )


def spec(name: str, *paths: Path, read_only: bool = False) -> ContainerSpec:
    mounts = tuple(
        Mount(container_path=f"/{number}", host_path=os.fspath(path), read_only=read_only)
        for number, path in enumerate(paths)
    )
    return ContainerSpec(id=name, pod_id="pod", name=name, mounts=mounts)


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    one = Bed(tmp_path)
    yield one
    assert not one.watcher._calls, "nothing is watched for a pod that is gone"


async def test_an_agent_of_before_gets_its_volumes_shared(bed: Bed) -> None:
    bed.agent.hello = Hello()
    volumes = bed.daemon()
    assert await volumes.place(spec("c", bed.kubelet.empty_dir("empty"))) == {}
    assert not bed.agent.asked and not bed.machine.plugged
    await volumes.close()


async def test_an_empty_dir_is_one_disk_for_all_containers_and_daemons(bed: Bed) -> None:
    empty = bed.kubelet.empty_dir("empty", mode=0o2775)
    volumes = bed.daemon()
    (first,) = (await volumes.place(spec("one", empty))).values()
    assert (await volumes.place(spec("two", empty)))["/0"] == first
    assert bed.machine.attached == 1
    hold = bed.agent.asked[0]
    assert isinstance(hold, Hold) and hold.disk is not None and hold.disk.at
    assert hold.directories[0].mode == 0o2775
    await volumes.copies.release("one")
    await volumes.copies.release("two")
    assert bed.machine.plugged, "it lasts as long as the pod"
    await volumes.close()
    later = bed.daemon(empty_dir="share")
    later.adopt()
    assert (await later.place(spec("three", empty)))["/0"] == first
    assert bed.machine.attached == 1
    await later.close()


async def test_a_disk_that_a_killed_daemon_was_attaching_is_attached_anew(bed: Bed) -> None:
    empty = bed.kubelet.empty_dir("empty")
    volumes = bed.daemon()
    await volumes.place(spec("one", empty))
    (held,) = bed.files.volumes()
    assert held.disk is not None
    bed.files.write_volumes(
        [type(held)(id=held.id, kind="disk", path=held.path, disk=type(held.disk)(id=held.id))]
    )
    await volumes.close()
    later = bed.daemon()
    later.adopt()
    assert await later.place(spec("two", empty))
    assert bed.machine.attached == 2 and len(bed.machine.plugged) == 1
    await later.close()


async def test_what_was_shared_once_stays_shared(bed: Bed) -> None:
    empty = bed.kubelet.empty_dir("empty")
    (empty / "file").touch()
    volumes = bed.daemon()
    assert await volumes.place(spec("one", empty)) == {}
    (empty / "file").unlink()
    assert await volumes.place(spec("two", empty)) == {}
    await volumes.close()
    later = bed.daemon()
    later.adopt()
    assert await later.place(spec("three", empty)) == {}
    assert not bed.machine.plugged and not (empty / DISK).exists()
    await later.close()


async def test_a_disk_that_is_a_link_is_refused(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that shared the directory before has put it there; QEMU is not given what it leads to."""
    empty = bed.kubelet.empty_dir("empty")
    (empty / DISK).symlink_to("/dev/null")

    async def attach(disk: object, **more: object) -> tuple[str, ...]:
        os.close(os.open(empty / DISK, os.O_RDWR | os.O_NOFOLLOW))
        return ()

    monkeypatch.setattr(bed.machine, "attach_disk", attach)
    volumes = bed.daemon()
    with pytest.raises(FailedPrecondition, match=f"its disk {DISK}"):
        await volumes.place(spec("one", empty))
    await volumes.close()


async def test_a_copy_lasts_as_long_as_its_containers(bed: Bed) -> None:
    config = bed.kubelet.atomic("configmap", "config", {"key": b"value"})
    volumes = bed.daemon()
    placed = await volumes.place(spec("one", config, read_only=True))
    assert placed == await volumes.place(spec("two", config, read_only=True))
    assert [type(request) for request in bed.agent.asked] == [FillAll], "the second has what the first has"
    await volumes.copies.release("one")
    assert len(bed.agent.asked) == 1
    await volumes.copies.release("two")
    await volumes.copies.release("two")
    assert [type(request) for request in bed.agent.asked] == [FillAll, DropAll]
    assert bed.files.volumes() == []
    await volumes.close()


async def test_the_small_volumes_of_a_container_are_one_message(bed: Bed) -> None:
    one, two = (bed.kubelet.atomic("configmap", name, {"key": name.encode()}) for name in ("one", "two"))
    hosts, gone = bed.kubelet.etc_hosts(), bed.kubelet.atomic("secret", "gone", {})
    (gone / "fifo").parent.mkdir(exist_ok=True)
    os.mkfifo(gone / "fifo")
    volumes = bed.daemon()
    small = (
        Mount(container_path="/one", host_path=os.fspath(one), read_only=True),
        Mount(container_path="/two", host_path=os.fspath(two), read_only=True),
        Mount(container_path="/gone", host_path=os.fspath(gone), read_only=True),
        Mount(container_path="/etc/hosts", host_path=os.fspath(hosts)),
    )
    placed = await volumes.place(ContainerSpec(id="c", pod_id="pod", name="c", mounts=small))
    assert placed.keys() == {"/one", "/two", "/etc/hosts"}, "what cannot be copied keeps nothing else from it"
    (told,) = bed.agent.asked
    assert isinstance(told, FillAll)
    assert {fill.id for fill in told.fills} == {volume for volume, _ in placed.values()}
    data = [b"".join(entry.data for entry in fill.entries) for fill in told.fills]
    assert data == [b"one", b"two", hosts.read_bytes()]
    assert {held.id for held in bed.files.volumes()} == {fill.id for fill in told.fills}
    await volumes.copies.release("c")
    assert bed.agent.asked[1:] == [DropAll(ids=tuple(fill.id for fill in told.fills))]
    assert not bed.files.volumes()
    await volumes.close()


async def test_an_agent_of_before_is_told_of_each_volume(bed: Bed) -> None:
    bed.agent.hello = Hello(features=tuple(one for one in FEATURES if one != MANY_VOLUMES))
    paths = [bed.kubelet.atomic("configmap", name, {"key": b"value"}) for name in ("one", "two")]
    volumes = bed.daemon()
    assert len(await volumes.place(spec("c", *paths, read_only=True))) == 2
    await volumes.copies.release("c")
    assert [type(request) for request in bed.agent.asked] == [Fill, Fill, Drop, Drop]
    await volumes.close()


async def test_many_volumes_go_in_messages_that_a_guest_takes(bed: Bed) -> None:
    paths = [bed.kubelet.atomic("secret", str(n), {"key": bytes(900 << 10)}) for n in range(5)]
    volumes = bed.daemon()
    assert len(await volumes.place(spec("c", *paths, read_only=True))) == 5
    assert [len(request.fills) for request in bed.agent.asked] == [2, 2, 1]
    for request in bed.agent.asked:
        assert len(messages.pack_request(request)) < 4 << 20
    await volumes.copies.release("c")
    await volumes.close()


async def test_volumes_that_the_guest_did_not_take_are_held_by_nobody(bed: Bed) -> None:
    paths = [bed.kubelet.atomic("configmap", name, {"key": b"value"}) for name in ("one", "two")]
    volumes = bed.daemon()
    bed.agent.fails = True
    with pytest.raises(Unavailable):
        await volumes.place(spec("c", *paths, read_only=True))
    assert not bed.watcher._calls and not bed.files.volumes()
    bed.agent.fails = False
    assert len(await volumes.place(spec("c", *paths, read_only=True))) == 2
    await volumes.copies.release("c")
    await volumes.close()


async def test_a_large_volume_goes_in_parts_and_a_too_large_one_not_at_all(bed: Bed) -> None:
    large = bed.kubelet.atomic("secret", "large", {str(n): bytes(1 << 20) for n in range(3)})
    volumes = bed.daemon()
    await volumes.place(spec("one", large, read_only=True))
    fills = [request for request in bed.agent.asked if isinstance(request, Fill)]
    assert [fill.more for fill in fills] == [True] * (len(fills) - 1) + [False]
    assert len(fills) > 1
    for fill in fills:
        assert len(messages.pack_request(fill)) < 4 << 20
    small = bed.daemon(copy_kib=1024)
    bed.agent.asked.clear()
    other = bed.kubelet.atomic("secret", "other", {str(n): bytes(1 << 20) for n in range(2)})
    assert await small.place(spec("two", other, read_only=True)) == {}
    assert not bed.agent.asked
    await volumes.copies.release("one")
    await volumes.close()
    await small.close()


async def test_a_volume_that_outgrows_its_bound_stays_as_it_was_until_it_is_small_again(
    bed: Bed, caplog: pytest.LogCaptureFixture
) -> None:
    config = bed.kubelet.atomic("configmap", "config", {"key": b"small"})
    volumes = bed.daemon(copy_kib=1024)
    placed = await volumes.place(spec("one", config, read_only=True))

    bed.kubelet.atomic("configmap", "config", {"key": bytes(2 << 20)})
    await until(lambda: "is not up to date in its pod" in caplog.text)
    assert len(bed.agent.asked) == 1
    # Another container of the pod gets what the first one has.
    assert await volumes.place(spec("two", config, read_only=True)) == placed
    bed.kubelet.atomic("configmap", "config", {"key": b"again"})
    await until(lambda: len(bed.agent.asked) > 1)
    assert any(entry.data == b"again" for entry in bed.agent.asked[-1].entries)
    for name in ("one", "two"):
        await volumes.copies.release(name)
    await volumes.close()


async def test_a_guest_says_how_full_a_volume_is_and_is_believed_within_reason(bed: Bed) -> None:
    empty = bed.kubelet.empty_dir("empty")
    volumes = bed.daemon()
    assert await volumes.usage(os.fspath(empty)) is None, "the guest does not hold it"
    await volumes.place(spec("one", empty))
    (held,) = bed.files.volumes()
    assert await volumes.usage(os.fspath(empty)) is None, "an agent of before does not say"
    told = VolumeFill(id=held.id, total=100, free=200, inodes=5, inodes_free=6)
    bed.agent.fills = (VolumeFill(id="of another", total=1, free=1, inodes=1, inodes_free=1), told)
    assert await volumes.usage(os.fspath(empty)) == VolumeUse(total=100, free=100, inodes=5, inodes_free=5)
    assert await volumes.usage(os.fspath(empty.parent)) is None
    bed.agent.closed = True
    assert await volumes.usage(os.fspath(empty)) is None
    await volumes.close()


async def test_a_link_among_a_kubelets_volumes_makes_nothing(bed: Bed, tmp_path: Path) -> None:
    good = bed.kubelet.atomic("configmap", "good", {"key": b"value"})
    bad = good.with_name("bad")
    bad.symlink_to("/etc")
    volumes = bed.daemon()
    with pytest.raises(FailedPrecondition, match="bad is a symbolic link to /etc"):
        await volumes.place(spec("one", good, bad, read_only=True))
    assert not bed.agent.asked and not bed.files.volumes() and not bed.machine.plugged
    await volumes.close()


async def test_a_termination_log_is_written_over_the_kubelets_file_and_no_other(
    bed: Bed, tmp_path: Path
) -> None:
    log = bed.kubelet.termination_log("main")
    volumes = bed.daemon()
    assert (await volumes.place(spec("one", log)))["/0"][1] == log.name
    await volumes.copies.write_back("another")
    assert log.read_bytes() == b""
    await volumes.copies.write_back("one")
    assert log.read_bytes() == b"said"
    outside = tmp_path / "outside"
    outside.write_text("of the host")
    log.unlink()
    log.symlink_to(outside)
    await volumes.copies.write_back("one")
    assert outside.read_text() == "of the host"
    bed.agent.fails = True
    await volumes.copies.write_back("one")
    bed.agent.fails = False
    await volumes.copies.release("one")
    await volumes.close()


@pytest.mark.parametrize(("needs", "said"), [(KILL_GRACE / 2, b"said"), (KILL_GRACE, b"")])
async def test_a_busy_guest_has_time_to_say_why_a_container_ended_but_not_for_ever(
    bed: Bed, needs: float, said: bytes
) -> None:
    log = bed.kubelet.termination_log("main")
    volumes = bed.daemon()
    await volumes.place(spec("one", log))
    bed.agent.needs = needs
    await volumes.copies.write_back("one")
    assert log.read_bytes() == said
    await volumes.copies.release("one")
    await volumes.close()


async def test_a_named_volume_is_the_disk_that_it_is(bed: Bed, tmp_path: Path) -> None:
    """It is found by where it is, not by what is in it; and it is not made."""
    store = VolumeStore(bed.place)
    await store.open()
    bed_named = bed.daemon()
    bed_named._named = bed.place / "volumes"
    await store.create("data", 32 << 20, whole=True)
    await store.create("shared", 32 << 20)
    data = store.directory("data") / "data"
    found = await bed_named.place(spec("c1", data))
    (held,) = bed.files.volumes()
    assert found == {"/0": (held.id, "")}
    assert (held.kind, held.path) == ("disk", os.fspath(data))
    with pytest.raises(FailedPrecondition, match="shared"):
        await bed_named.place(spec("c2", store.directory("shared") / "data"))
    mapped = Mount(
        container_path="/m",
        host_path=os.fspath(data),
        uid_mappings=(IdMapping(container_id=0, host_id=100000, length=65536),),
    )
    with pytest.raises(FailedPrecondition, match="user namespace"):
        await bed_named.place(ContainerSpec(id="c3", pod_id="pod", name="c3", mounts=(mapped,)))
    # A directory of a pod's own making that looks the same means nothing.
    forged = tmp_path / "elsewhere" / "volumes" / "x" / "data"
    forged.mkdir(parents=True)
    (forged / ".orlop-volume").touch()
    assert await bed_named.place(spec("c4", forged)) == {}
    with pytest.raises(FailedPrecondition, match="handler vm"):
        top = tmp_path / "other" / "volumes"
        other = VolumeStore(top)
        await other.open()
        await other.create("whole", 32 << 20, whole=True)
        shown.check_not_whole(os.fspath(other.directory("whole") / "data"))
    await bed_named.close()
