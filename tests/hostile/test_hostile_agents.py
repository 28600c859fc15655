"""Agents that were taken over, in real guests, against a real daemon: they harm their own pods alone."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.client.calls import CriClient
from orlop.cri.api import runtime_v1_pb2 as pb
from tests.hostile.taken_over import obedient_node, order
from tests.node import BUSYBOX, Node

FLOODS = ("events", "logs", "acknowledgements")
WAITED_FOR = 25.0
UNNOTICED = 50.0
"""Milliseconds that a call may take in any case: without what holds floods up it took seconds."""


@pytest.fixture(scope="module")
def taken_over(registry: str) -> Iterator[Node]:
    with obedient_node(registry) as one:
        yield one


@pytest.fixture(autouse=True)
def no_pods_before(taken_over: Node) -> None:
    taken_over.remove_all()


def _pod(one: Node) -> tuple[str, str]:
    return one.run(BUSYBOX, "sleep", "100000", handler="vm")


async def _medians(one: Node, container: str, times: int) -> dict[str, float]:
    """How long a call of the node and one of a pod take, in the middle, in milliseconds."""
    found: dict[str, list[float]] = {"Version": [], "ExecSync": []}
    async with CriClient(Path(one.socket)) as client:
        for _ in range(times):
            begun = time.monotonic()
            await client.runtime.version(pb.VersionRequest())
            found["Version"].append(time.monotonic() - begun)
            begun = time.monotonic()
            await client.runtime.exec_sync(pb.ExecSyncRequest(container_id=container, cmd=["true"]))
            found["ExecSync"].append(time.monotonic() - begun)
            await asyncio.sleep(0.05)
    return {name: round(statistics.median(values) * 1000, 1) for name, values in found.items()}


async def _statistics(one: Node) -> dict[str, float]:
    """Seconds that each call for the figures of all pods takes."""
    found = {}
    async with CriClient(Path(one.socket)) as client:
        for name, call, request in (
            ("ListPodSandboxStats", client.runtime.list_pod_sandbox_stats, pb.ListPodSandboxStatsRequest()),
            ("ListContainerStats", client.runtime.list_container_stats, pb.ListContainerStatsRequest()),
            (
                "ListPodSandboxMetrics",
                client.runtime.list_pod_sandbox_metrics,
                pb.ListPodSandboxMetricsRequest(),
            ),
        ):
            begun = time.monotonic()
            await call(request)
            found[name] = round(time.monotonic() - begun, 2)
    return found


def test_the_daemon_serves_while_a_guest_keeps_it_waiting(taken_over: Node) -> None:
    honest_pod, honest = _pod(taken_over)
    hostile_pod, hostile = _pod(taken_over)
    order(taken_over, hostile, "strangers")
    taken_over.kill()
    taken_over.start()
    assert taken_over.crictl("exec", "--sync", honest, "echo", "here").out.strip() == "here"
    assert {honest_pod, hostile_pod} == set(taken_over.crictl("pods", "-q").out.split())
    assert taken_over.pod_status(hostile_pod)["state"] == "SANDBOX_READY", "others waited for its end"
    taken_over.crictl("exec", "--sync", hostile, "true", check=False)
    assert taken_over.pod_status(hostile_pod)["state"] == "SANDBOX_NOTREADY"
    assert taken_over.pod_status(honest_pod)["state"] == "SANDBOX_READY"
    taken_over.remove_pod(hostile_pod)
    taken_over.remove_pod(honest_pod)


def test_floods_do_not_starve_the_node(taken_over: Node) -> None:
    _, honest = _pod(taken_over)
    hostile = [_pod(taken_over) for _ in FLOODS]
    asyncio.run(_medians(taken_over, honest, 10))
    idle = asyncio.run(_medians(taken_over, honest, 40))
    for (_, container), flood in zip(hostile, FLOODS, strict=True):
        order(taken_over, container, "flood", flood)
    flooded = []
    # A busy moment of the machine is no flood's fault.
    for _ in range(4):
        flooded.append(asyncio.run(_medians(taken_over, honest, 40)))
        print(f"milliseconds, idle {idle}, flooded {flooded[-1]}")
        if all(flooded[-1][name] < max(UNNOTICED, 2 * before) for name, before in idle.items()):
            return
    # Neither is other work that began meanwhile, nor that guests want the processors: this is beside
    # guests that want nothing else.
    for pod, _ in hostile:
        taken_over.remove_pod(pod)
    for _ in hostile:
        taken_over.run(BUSYBOX, "sh", "-c", "while :; do :; done", handler="vm")
    later = asyncio.run(_medians(taken_over, honest, 40))
    print(f"beside guests that are busy {later}")
    for name, before in idle.items():
        fastest = min(one[name] for one in flooded)
        assert fastest < max(UNNOTICED, 2 * before, 2 * later[name]), (name, idle, flooded, later)


def test_a_silent_agent_does_not_stretch_time_limits(taken_over: Node) -> None:
    pod, silent = _pod(taken_over)
    order(taken_over, silent, "silence")
    # All of that takes seconds; an agent that is waited for may take the half minute of a call.
    begun = time.monotonic()
    taken_over.crictl("exec", "--sync", "--timeout", "1", silent, "true", check=False)
    assert time.monotonic() - begun < WAITED_FOR
    # What the whole node uses is told with what there is, within a second.
    taken = asyncio.run(_statistics(taken_over))
    print(f"seconds for the statistics of all pods: {taken}")
    assert max(taken.values()) < WAITED_FOR
    begun = time.monotonic()
    taken_over.crictl("stop", "--timeout", "1", silent)
    assert time.monotonic() - begun < WAITED_FOR
    assert taken_over.status(silent)["state"] == "CONTAINER_EXITED"
    assert taken_over.pod_status(pod)["state"] == "SANDBOX_NOTREADY"


def test_the_kernel_does_not_spare_a_vm_like_the_daemon(taken_over: Node) -> None:
    pod = taken_over.pod_config()
    pod_id = taken_over.run_pod(pod, "vm")
    machine = json.loads(taken_over.crictl("inspectp", pod_id).out)["info"]["pid"]
    score = Path(f"/proc/{machine}/oom_score_adj")
    assert int(score.read_text()) >= 0
    taken_over.pull(BUSYBOX)
    resources = {"resources": {"oom_score_adj": 950}}
    taken_over.create(pod_id, pod, BUSYBOX, "sleep", "1000", linux=resources)
    assert int(score.read_text()) == 950
