"""What is told of figures: what was not measured is left out, what cannot be told harms nobody else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.services.statistics import StatisticsCalls
from orlop.cri.translate import filesystems, metrics, stats
from orlop.images.model import FsInfo
from orlop.linux.usage import Pressure, Usage
from orlop.net.model import InterfaceCounters
from orlop.pods.records import ContainerPhase, ContainerRecord, ContainerUse, PodPhase, PodRecord, PodUse
from orlop.sandbox.figures import ContainerStats, Detail, LayerUse, PodStats
from orlop.sandbox.spec import ContainerSpec, PodSpec
from tests.unit.cri_double import MemoryImages, MemoryPods

MOST = (1 << 64) - 1


def pod(pod_id: str, found: PodStats) -> PodUse:
    spec = PodSpec(id=pod_id, name=pod_id, namespace="n", uid="u")
    members = tuple(
        ContainerRecord(
            spec=ContainerSpec(id=one.container_id, pod_id=pod_id, name="c"),
            phase=ContainerPhase.RUNNING,
            created_at=1,
        )
        for one in found.containers
    )
    record = PodRecord(spec=spec, phase=PodPhase.READY, created_at=1)
    return PodUse(record=record, stats=found, containers=members)


def test_a_pod_on_the_hosts_network_has_no_network_of_its_own() -> None:
    found = stats.pod_stats(pod("p", PodStats(usage=Usage(timestamp=1))))
    assert not found.linux.HasField("network")


def test_a_network_always_has_a_default_interface() -> None:
    counters = (InterfaceCounters(name="net1", rx_bytes=1), InterfaceCounters(name="net2", rx_bytes=2))
    found = stats.pod_stats(pod("p", PodStats(usage=Usage(timestamp=1), interfaces=counters)))
    assert found.linux.network.default_interface.name == "net1"
    more = (*counters, InterfaceCounters(name="eth0", rx_bytes=3))
    found = stats.pod_stats(pod("p", PodStats(usage=Usage(timestamp=1), interfaces=more)))
    assert found.linux.network.default_interface.name == "eth0"
    assert len(found.linux.network.interfaces) == 3


def test_a_rate_that_nobody_knows_is_left_out_and_what_is_left_of_nothing_is_told() -> None:
    usage = Usage(timestamp=1, memory=90, working_set=80, memory_limit=70)
    found = stats.pod_stats(pod("p", PodStats(usage=usage, available=0)))
    assert not found.linux.cpu.HasField("usage_nano_cores")
    assert found.linux.memory.HasField("available_bytes")
    assert stats.available(usage) == 0
    assert stats.available(Usage(timestamp=1, memory=90)) is None


def test_the_largest_figures_can_be_told() -> None:
    figures = {
        field.name: MOST
        for field in dataclasses.fields(Usage)
        if field.type == "int" and field.name != "timestamp"
    }
    pressure = Pressure(some_total=MOST, full_total=MOST)
    usage = Usage(timestamp=1, cpu_pressure=pressure, memory_pressure=pressure, **figures)
    one = ContainerStats(container_id="c", usage=usage, nano_cores=MOST * 10)
    use = pod("p", PodStats(usage=usage, nano_cores=MOST * 10, containers=(one, one)))
    assert stats.pod_stats(use).linux.cpu.usage_core_nano_seconds.value == MOST
    assert metrics.pod_metrics(use).metrics


class OnePodOfThreeIsBroken(MemoryPods):
    """The middle one has figures that no message takes."""

    def _uses(self) -> list[PodUse]:
        bad = msgspec.structs.replace(PodStats(), usage=Usage(timestamp=1 << 80))
        member = ContainerStats(container_id="c", usage=Usage(timestamp=1 << 80))
        bad = msgspec.structs.replace(bad, containers=(member,))
        good = PodStats(
            usage=Usage(timestamp=1), containers=(ContainerStats(container_id="d", usage=Usage(timestamp=1)),)
        )
        return [pod("a", good), pod("b", bad), pod("c", good)]

    async def list_pod_stats(self, filter: object, detail: Detail = Detail.POD) -> list[PodUse]:  # noqa: A002
        return self._uses()

    async def list_container_stats(self, filter: object) -> list[ContainerUse]:  # noqa: A002
        return [ContainerUse(record=use.containers[0], stats=use.stats.containers[0]) for use in self._uses()]


async def test_one_pod_never_costs_a_list_the_others() -> None:
    calls = StatisticsCalls(OnePodOfThreeIsBroken(), MemoryImages())  # type: ignore[arg-type]
    containers = await calls.list_container_stats(pb.ListContainerStatsRequest())
    assert len(containers.stats) == 2
    pods = await calls.list_pod_sandbox_stats(pb.ListPodSandboxStatsRequest())
    assert [one.attributes.id for one in pods.stats] == ["a", "c"]
    found = await calls.list_pod_sandbox_metrics(pb.ListPodSandboxMetricsRequest())
    assert {"a", "c"} <= {one.pod_sandbox_id for one in found.pod_metrics}
    pages = [page async for page in calls.stream_container_stats(pb.StreamContainerStatsRequest())]
    assert pages


def test_writable_layers_have_their_own_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("images", "process"):
        (tmp_path / name).mkdir()
    images = FsInfo(mountpoint=str(tmp_path / "images"), used_bytes=1000, inodes=10, timestamp=5)
    layers = [
        LayerUse(timestamp=6, mountpoint=str(tmp_path / "process"), used=7, inodes=2),
        LayerUse(timestamp=6, mountpoint=str(tmp_path / "vm-scratch"), used=40, inodes=3),
    ]
    found = filesystems.fs_info(images, layers)
    (image,), (container,) = found.image_filesystems, found.container_filesystems
    assert (image.used_bytes.value, container.used_bytes.value, container.inodes_used.value) == (1000, 47, 5)
    # One disk has one name.
    assert container.fs_id.mountpoint == image.fs_id.mountpoint

    def devices(place: Path) -> int:
        return 2 if place.name == "process" else 1

    monkeypatch.setattr(filesystems, "_device", devices)
    found = filesystems.fs_info(images, layers)
    assert {one.fs_id.mountpoint: one.used_bytes.value for one in found.container_filesystems} == {
        str(tmp_path / "process"): 7,
        str(tmp_path / "images"): 40,
    }
