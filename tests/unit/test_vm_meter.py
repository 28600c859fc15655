"""What the host tells of a VM's pod, whatever the guest says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.cri.translate import metrics, stats
from orlop.errors import Unavailable
from orlop.hypervisor.base import MachineShape, MemoryUse
from orlop.linux.usage import DeviceUse, LayerFill, Pressure, Usage
from orlop.pods.records import ContainerPhase, ContainerRecord, PodPhase, PodRecord, PodUse
from orlop.sandbox.cpuledger import CpuLedger
from orlop.sandbox.figures import Detail, PodStats
from orlop.sandbox.spec import ContainerSpec, PodSpec
from orlop.sandbox.vm import meter
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.meter import Host, VmMeter
from orlop.wire.messages import Request, StatsReply
from orlop.wire.statistics import ContainerUsage
from tests.unit.vm_peer import Peer

MIB = 1 << 20
MOST = (1 << 63) - 1
MEMORY = MemoryUse(pss=80 * MIB, private=60 * MIB, shared=90 * MIB)


class Machine:
    pid = os.getpid()
    shape = MachineShape(memory_mib=256, vcpus=1)

    async def memory(self) -> MemoryUse:
        return MEMORY


async def no_interfaces(netns: Path) -> tuple[()]:
    return ()


@pytest.fixture(autouse=True)
def host_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(meter.tap, "interface_stats", no_interfaces)
    monkeypatch.setattr(meter, "PATIENCE", 0.1)
    yield


def meter_of(agent: AgentClient, tmp_path: Path) -> VmMeter:
    clone = cast("Any", SimpleNamespace(machine=Machine(), agent=agent, netns=tmp_path))
    return VmMeter(clone, cgroup="", place="/layers", ledger=tmp_path / "cpu.ledger")


def told(found: PodStats) -> None:
    """Everything of it can be said in CRI."""
    pod = PodRecord(
        spec=PodSpec(id="p", name="p", namespace="n", uid="u"), phase=PodPhase.READY, created_at=1
    )
    members = tuple(
        ContainerRecord(
            spec=ContainerSpec(id=one.container_id, pod_id="p", name="c"),
            phase=ContainerPhase.RUNNING,
            created_at=1,
        )
        for one in found.containers
    )
    use = PodUse(record=pod, stats=found, containers=members)
    stats.pod_stats(use)
    metrics.pod_metrics(use)


def lies(figure: int) -> Usage:
    return Usage(
        timestamp=figure,
        cpu_ns=figure, cpu_user_ns=figure, cpu_system_ns=figure, cpu_periods=figure,
        cpu_throttled_periods=figure, cpu_throttled_ns=figure, memory=figure, working_set=figure, rss=figure,
        swap=figure, memory_limit=figure, memory_peak=figure, memory_failures=figure, cache=figure,
        mapped_file=figure, kernel_memory=figure, page_faults=figure, major_page_faults=figure,
        oom_kills=figure, pids=figure, pids_limit=figure, processes=figure, descriptors=figure,
        sockets=figure,
        devices=tuple(
            DeviceUse(
                major=figure, minor=n, read_bytes=figure, write_bytes=figure, reads=figure, writes=figure
            )
            for n in range(3)
        ),
        cpu_pressure=Pressure(some_avg10=1e18, some_total=figure, full_total=figure),
    )  # fmt: skip


async def test_a_lying_agent_harms_nobody(tmp_path: Path) -> None:
    layer = tmp_path / "c.img"
    layer.write_bytes(b"x" * (3 * MIB))
    replies = iter((0, MOST, 0, MOST, 7))

    def answer(request: Request[Any]) -> StatsReply:
        figure = next(replies)
        of = LayerFill(used=figure, inodes=figure, size=figure, inodes_total=figure, inodes_free=figure)
        members = (ContainerUsage(id="c", usage=lies(figure), layer=of),)
        more = tuple(ContainerUsage(id=f"unknown{n}", usage=lies(figure)) for n in range(9))
        return StatsReply(
            pod=lies(figure),
            containers=members + more,
            system_memory_total=figure,
            system_memory_available=MOST - figure,
        )

    async with Peer(tmp_path / "sock", answer) as peer:
        agent = await AgentClient.connect(peer.path, name="VM", timeout=60)
        measured = meter_of(agent, tmp_path)
        earlier: Usage | None = None
        for _ in range(5):
            found = await measured.measure({"c": str(layer)}, Detail.METRICS)
            # The pod's own figures are the host's.
            assert found.usage.memory == found.usage.working_set == MEMORY.pss
            assert 0 < found.usage.cpu_ns < 10**15
            assert found.available == 256 * MIB - MEMORY.pss
            assert found.memory.used <= 256 * MIB
            (one,) = found.containers
            assert one.usage.cpu_ns <= found.usage.cpu_ns
            assert one.usage.memory <= MEMORY.private + MEMORY.shared
            assert one.usage.timestamp < 1 << 62
            assert one.layer.used == 3 * MIB
            assert one.layer.inodes_free <= one.layer.inodes_total <= 3 << 10
            told(found)
            if earlier is not None:
                for name in ("cpu_ns", "page_faults", "oom_kills", "cpu_periods", "reads", "write_bytes"):
                    assert getattr(one.usage, name) >= getattr(earlier, name)
            earlier = one.usage
        await measured.close()
        await agent.close()


async def test_a_pod_that_is_being_removed_has_no_figures_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Peer(tmp_path / "sock", lambda _: StatsReply()) as peer:
        agent = await AgentClient.connect(peer.path, name="VM", timeout=60)
        measured = meter_of(agent, tmp_path)
        await measured.close()
        with pytest.raises(Unavailable, match="its VM is being removed"):
            await measured.measure({}, Detail.POD)
        await agent.close()
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


async def test_a_silent_agent_leaves_what_the_host_knows(tmp_path: Path) -> None:
    speaks = True

    def answer(request: Request[Any]) -> StatsReply | None:
        usage = Usage(timestamp=1, memory=5 * MIB)
        return StatsReply(pod=usage, containers=(ContainerUsage(id="c", usage=usage),)) if speaks else None

    async with Peer(tmp_path / "sock", answer) as peer:
        agent = await AgentClient.connect(peer.path, name="VM", timeout=60)
        speaks = False
        measured = meter_of(agent, tmp_path)
        async with asyncio.timeout(20):
            found = await measured.measure({"c": "/none"}, Detail.POD)
        assert found.usage.memory == MEMORY.pss
        assert found.containers == ()
        told(found)
        async with asyncio.timeout(20):
            await measured.measure({"c": "/none"}, Detail.POD)
        assert len(peer.requests) == 1, "it is not asked again before it has answered"
        await measured.close()

        speaks = True
        measured = meter_of(agent, tmp_path)
        first = await measured.measure({"c": "/none"}, Detail.POD)
        speaks = False
        again = await measured.measure({"c": "/none"}, Detail.POD)
        assert again.containers == first.containers, "its last words, with their time"
        assert again.usage.timestamp > first.usage.timestamp
        await measured.close()
        await agent.close()


def test_what_the_vm_was_charged_before_it_was_a_pods_counts() -> None:
    group = Usage(timestamp=1, memory=14 * MIB, cache=9 * MIB, mapped_file=MIB, kernel_memory=2 * MIB)
    host = Host(7, group, {})
    found = meter.pod_usage(
        host, MemoryUse(pss=103 * MIB, private=95 * MIB, shared=40 * MIB), 256 * MIB, None
    )
    assert found.working_set == 105 * MIB
    assert found.memory == 113 * MIB
    assert found.cpu_ns == 7


def test_a_layer_takes_what_its_file_takes() -> None:
    grown = meter.layer_use(LayerFill(used=5, inodes=3), taken=900, size=4096, at=1, place="/p")
    assert (grown.used, grown.size, grown.mountpoint) == (900, 4096, "/p")
    # Written, and not yet on the host's disk.
    assert meter.layer_use(LayerFill(used=2000), taken=900, size=4096, at=1, place="/p").used == 2000
    assert meter.layer_use(LayerFill(used=MOST), taken=900, size=4096, at=1, place="/p").used == 4096


def test_containers_never_use_more_than_their_vm(tmp_path: Path) -> None:
    ledger = CpuLedger(tmp_path / "cpu.ledger")
    assert ledger.divide({"a": 10}, 100, {"a"}) == {"a": 10}
    # The guest counts 265 where its VM got 134.
    assert ledger.divide({"a": 200, "b": 65}, 134, {"a", "b"}) == {"a": 102, "b": 31}
    # Another daemon takes over; time goes on, nothing falls.
    again = CpuLedger(tmp_path / "cpu.ledger")
    assert again.divide({"a": 200, "b": 65}, 134, {"a", "b"}) == {"a": 102, "b": 31}
    assert again.divide({"a": 200, "b": 100}, 150, {"a", "b"}) == {"a": 102, "b": 48}
    # A container that is gone keeps what it used.
    assert again.divide({"c": 1000}, 160, {"c"}) == {"c": 10}


@given(
    st.lists(st.tuples(st.dictionaries(st.sampled_from("abc"), st.integers(0, MOST)), st.integers(0, 10**6)))
)
def test_shares_only_grow_and_never_exceed_the_whole(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[dict[str, int], int]]
) -> None:
    ledger = CpuLedger(tmp_path_factory.mktemp("ledger") / "cpu.ledger")
    total = 0
    before: dict[str, int] = {}
    for counted, more in steps:
        total += more
        given_now = ledger.divide(counted, total, "abc")
        assert all(value >= before.get(key, 0) for key, value in given_now.items())
        before |= given_now
        assert sum(before.values()) <= total
