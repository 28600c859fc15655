"""What a pod of processes uses, as its containers come and go."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from orlop.host import cgroups
from orlop.host.cgroups import Cgroup, Hierarchy
from orlop.linux.usage import Usage
from orlop.sandbox.figures import Detail
from orlop.sandbox.process import meter, podgroup
from orlop.sandbox.process.meter import PodMeter
from orlop.sandbox.spec import PodSpec

MIB = 1 << 20
POD = PodSpec(id="f" * 64, name="p", namespace="n", uid="12ab-34")


@pytest.mark.parametrize(
    ("parent", "systemd", "path"),
    [
        ("/kubepods/burstable/pod12ab-34", False, "/kubepods/burstable/pod12ab-34"),
        ("kubepods-pod12ab_34.slice", True, "kubepods-pod12ab_34.slice"),
        ("kubepods-pod12ab_34.slice", False, "kubepods-pod12ab_34.slice"),
        ("/shared", False, "/shared/orlop-" + "f" * 32),
        ("/kubepods/pod12ab-345", False, "/kubepods/pod12ab-345/orlop-" + "f" * 32),
        ("shared.slice", True, "shared.slice"),
        ("", False, "/orlop/" + "f" * 64),
    ],
)
def test_a_pod_has_a_group_to_itself(parent: str, systemd: bool, path: str) -> None:
    spec = PodSpec(id=POD.id, name="p", namespace="n", uid=POD.uid, cgroup_parent=parent)
    found = podgroup.path_of(spec, f"/orlop/{POD.id}", systemd=systemd)
    assert found == path
    assert podgroup.alone(found, spec) is (path != "shared.slice")
    assert podgroup.made_by_us(found, POD.id) is ("f" * 32 in path)


class Groups:
    """Groups of version 2 in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = Hierarchy(2, root, {"memory": root, "cpu": root})

    def set(self, path: str, *, cpu: int, memory: int = 0, limit: int = 0) -> Cgroup:
        place = self.root / path.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        (place / "cpu.stat").write_text(f"usage_usec {cpu}\n")
        (place / "memory.current").write_text(f"{memory}\n")
        (place / "memory.max").write_text(f"{limit or 'max'}\n")
        (place / "pids.current").write_text("1\n")
        return Cgroup(path, self.host)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    found = Groups(tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "hierarchy", lambda: found.host)
    return found


def layer(tmp_path: Path, name: str) -> Path:
    (tmp_path / name / "upper").mkdir(parents=True)
    (tmp_path / name / "upper" / "file").write_bytes(os.urandom(5000))
    return tmp_path / name


@pytest.mark.parametrize("own", [True, False])
async def test_a_pods_time_never_falls(groups: Groups, tmp_path: Path, own: bool) -> None:
    measured = PodMeter("/pod" if own else "", tmp_path, tmp_path / "ledger")
    measured.add("a", layer(tmp_path, "a"))
    measured.add("b", layer(tmp_path, "b"))
    groups.set("/pod", cpu=3_010_000)
    members = {"a": groups.set("/pod/a", cpu=2_980_000), "b": groups.set("/pod/b", cpu=30_000)}
    first = await measured.measure(members, None, Detail.POD)
    assert first.usage.cpu_ns == 3_010_000_000
    assert {one.container_id for one in first.containers} == {"a", "b"}
    assert sum(one.usage.cpu_ns for one in first.containers) <= first.usage.cpu_ns
    # One ends; the kernel forgets its group, and not what its parent has counted.
    measured.drop("a")
    second = await measured.measure({"b": members["b"]}, None, Detail.POD)
    assert second.usage.cpu_ns == 3_010_000_000
    await measured.close()
    # Another daemon takes over.
    later = PodMeter("/pod" if own else "", tmp_path, tmp_path / "ledger")
    later.add("b", tmp_path / "b")
    groups.set("/pod", cpu=3_020_000)
    members["b"] = groups.set("/pod/b", cpu=40_000)
    third = await later.measure({"b": members["b"]}, None, Detail.POD)
    assert third.usage.cpu_ns == 3_020_000_000
    await later.close()


async def test_memory_that_is_left(groups: Groups, tmp_path: Path) -> None:
    measured = PodMeter("", tmp_path, tmp_path / "ledger")
    measured.add("a", layer(tmp_path, "a"))
    measured.add("b", layer(tmp_path, "b"))
    limited = groups.set("/a", cpu=1, memory=10 * MIB, limit=64 * MIB)
    members = {"a": limited, "b": groups.set("/b", cpu=1, memory=20 * MIB)}
    found = await measured.measure(members, None, Detail.POD)
    assert found.usage.memory == 30 * MIB
    assert found.available is None, "one without a limit may take all there is"
    members["b"] = groups.set("/b", cpu=1, memory=20 * MIB, limit=32 * MIB)
    found = await measured.measure(members, None, Detail.POD)
    assert found.available == 66 * MIB
    await measured.close()
    # The pod's own limit counts where there is one.
    groups.set("/pod", cpu=1, memory=35 * MIB, limit=80 * MIB)
    whole = PodMeter("/pod", tmp_path, tmp_path / "ledger")
    found = await whole.measure({}, None, Detail.POD)
    assert found.available == 45 * MIB
    await whole.close()


async def test_layers_are_counted_where_they_last(groups: Groups, tmp_path: Path) -> None:
    measured = PodMeter("", tmp_path, tmp_path / "ledger")
    measured.add("a", layer(tmp_path, "a"))
    found = await measured.measure({"a": groups.set("/a", cpu=1)}, None, Detail.POD)
    (one,) = found.containers
    assert one.layer.mountpoint == str(tmp_path)
    assert 5000 <= one.layer.used < 5000 + 8192
    assert one.layer.inodes == 1
    assert 0 < one.layer.inodes_free <= one.layer.inodes_total
    assert one.layer.size > one.layer.used
    assert sum(layer.used for layer in await measured.layers()) == one.layer.used
    await measured.close()


async def test_a_slow_count_does_not_hold_up_the_others(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def slow(directory: Path) -> tuple[int, int]:
        gate.wait(60)
        return 1, 1

    monkeypatch.setattr(meter.rootfs, "usage", slow)
    measured = PodMeter("", tmp_path, tmp_path / "ledger")
    measured.add("a", layer(tmp_path, "a"))
    async with asyncio.timeout(20):
        found = await measured.measure({"a": groups.set("/a", cpu=7)}, None, Detail.POD)
    assert found.containers[0].usage == Usage(
        timestamp=found.containers[0].usage.timestamp, cpu_ns=7000, pids=1, processes=1
    )
    async with asyncio.timeout(20):
        await measured.close()
    gate.set()
