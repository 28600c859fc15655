"""The metrics that Kubernetes expects of a runtime, asked as its conformance tests ask.

Every expected name has a descriptor and, for a pod with a limited container that has written something, a
value; and every descriptor there is has one too, with as many label values as keys. The names are those that
kubelets of Kubernetes 1.37 serve.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.client.calls import CriClient
from orlop.cri.api import runtime_v1_pb2 as pb
from tests.e2e.test_cri_calls import Caller
from tests.node import BUSYBOX, Node
from tests.patience import PATIENCE

pytestmark = pytest.mark.parametrize("handler", ["vm", "process"])

EXPECTED = """
blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total
cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total
file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes fs_reads_bytes_total fs_reads_total
fs_usage_bytes fs_writes_bytes_total fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen
memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file
memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes memory_working_set_bytes
network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total
network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total
network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total
pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total
pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total
pressure_memory_waiting_seconds_total processes sockets spec_cpu_period spec_cpu_quota spec_cpu_shares
spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds
threads threads_max ulimits_soft
"""

NOT_ASKED_OF_ALL = """
hugetlb_max_usage_bytes hugetlb_usage_bytes pressure_cpu_stalled_seconds_total
pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total
pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total spec_cpu_quota
spec_memory_reservation_limit_bytes ulimits_soft
"""
"""Some runtimes lack these altogether, so they are not required."""

VALUE_OPTIONAL = """
blkio_device_usage_total fs_reads_bytes_total fs_reads_total fs_writes_bytes_total fs_writes_total
"""
"""Not all machines count these for the disks they have."""

LIMITS = pb.LinuxContainerConfig(
    resources=pb.LinuxContainerResources(
        cpu_period=100_000,
        cpu_quota=20_000,
        cpu_shares=1024,
        memory_limit_in_bytes=64 << 20,
        memory_swap_limit_in_bytes=64 << 20,
    )
)
WRITE = "mkdir -p /var/lib/x && for i in $(seq 1 10); do echo hi > /var/lib/x/$i; done; sync"


@pytest.fixture
async def caller(shared_node: Node, handler: str) -> AsyncIterator[Caller]:
    await asyncio.to_thread(shared_node.pull, BUSYBOX)
    async with CriClient(Path(shared_node.socket)) as client:
        caller = Caller(shared_node, client, handler)
        try:
            yield caller
        finally:
            listed = await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())
            for item in listed.items:
                await caller.remove(item.id)


async def metrics_of(caller: Caller, pod_id: str) -> pb.PodSandboxMetrics:
    answer = await caller.runtime.list_pod_sandbox_metrics(pb.ListPodSandboxMetricsRequest())
    (found,) = [one for one in answer.pod_metrics if one.pod_sandbox_id == pod_id]
    return found


async def test_every_expected_metric_has_a_descriptor_and_a_value(caller: Caller) -> None:
    pod = await caller.pod("metrics")
    container_id = await caller.container(pod, "sh", "-c", "sleep 1000", linux=LIMITS)
    await caller.start(container_id)
    assert (await caller.exec(container_id, "sh", "-c", WRITE)).exit_code == 0

    described = (await caller.runtime.list_metric_descriptors(pb.ListMetricDescriptorsRequest())).descriptors
    assert all(one.help and one.label_keys for one in described)
    keys = {one.name: len(one.label_keys) for one in described}
    wanted = {f"container_{name}" for name in EXPECTED.split()}
    optional = {f"container_{name}" for name in NOT_ASKED_OF_ALL.split()}
    assert not wanted - keys.keys() - optional

    found = await metrics_of(caller, pod[0])
    values: dict[str, int] = {}
    for metric in [*found.metrics, *(one for part in found.container_metrics for one in part.metrics)]:
        values.setdefault(metric.name, len(metric.label_values))
    optional |= {f"container_{name}" for name in VALUE_OPTIONAL.split()}
    assert not wanted - values.keys() - optional
    assert not keys.keys() - values.keys() - optional, "a descriptor without a value under this handler"
    assert {name: keys[name] for name in values} == values


async def test_values_are_what_was_done(caller: Caller) -> None:
    pod = await caller.pod("values")
    script = "dd if=/dev/zero of=/f bs=1M count=8; sync; nc -l -p 99 & while :; do :; done"
    container_id = await caller.container(pod, "sh", "-c", script, linux=LIMITS)
    await caller.start(container_id)
    limit = time.monotonic() + 60 * PATIENCE
    while True:
        (part,) = (await metrics_of(caller, pod[0])).container_metrics
        values = {metric.name.removeprefix("container_"): metric.value.value for metric in part.metrics}
        written = values["fs_usage_bytes"] >= 8 << 20
        if written and values["cpu_cfs_throttled_periods_total"] > 5 and values["sockets"] == 1:
            break
        assert time.monotonic() < limit, values
        await asyncio.sleep(1)
    assert values["cpu_cfs_periods_total"] >= values["cpu_cfs_throttled_periods_total"]
    assert values["processes"] == values["threads"] == 2
    assert values["file_descriptors"] >= 6
    assert 8 << 20 <= values["fs_usage_bytes"] < 24 << 20
    assert values["fs_limit_bytes"] > 64 << 20
    assert 0 < values["fs_inodes_free"] <= values["fs_inodes_total"]
    assert values["memory_max_usage_bytes"] >= values["memory_usage_bytes"] > 0
    assert values["memory_cache"] > 0
