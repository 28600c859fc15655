"""A guest whose agent lies about what its pod uses: nothing, or more than any counter holds."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

import orlop
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.translate import metrics, stats
from orlop.pods.records import ContainerPhase, ContainerRecord, PodPhase, PodRecord, PodUse
from orlop.sandbox.figures import Detail
from orlop.wire.messages import Stats
from tests.e2e.vm_environment import container_spec, environment, pod_spec
from tests.patience import PATIENCE

MOST = (1 << 63) - 1

LIES = f"""

from dataclasses import fields, replace

_honest = unified


def unified(read, **more):
    told = _honest(read, **more)
    lies = {{field.name: {MOST} for field in fields(told) if type(getattr(told, field.name)) is int}}
    pressure = Pressure(some_total={MOST}, full_total={MOST}, some_avg10=1e18)
    return replace(told, **lies | dict(memory=0, working_set=0, rss=0, cpu_pressure=pressure))
"""


async def test_a_lying_guest_hides_nothing_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "orlop"
    shutil.copytree(Path(orlop.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "linux" / "usage.py").open("a") as source:
        source.write(LIES)
    monkeypatch.setenv("ORLOP_TEST_AGENT", str(package))
    async with environment(templates="hostile-root") as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        container = container_spec(
            pod, "sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; sleep 1000"
        )
        await sandbox.create(container)
        await sandbox.start(container.id)
        machine = sandbox._clone.machine
        async with asyncio.timeout(60 * PATIENCE):
            while (await machine.memory()).private < 60 << 20:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.2)

        # What the guest says, as it is, would hide the pod and break the list.
        word = await sandbox._agent.call(Stats())
        assert (word.pod.memory, word.pod.working_set) == (0, 0)
        assert word.pod.cpu_pressure is not None
        with pytest.raises(ValueError, match="range"):
            pb.PsiData(Total=word.pod.cpu_pressure.some_total * 1000)

        found = await sandbox.stats(Detail.METRICS)
        assert found.usage.memory >= found.usage.working_set > 60 << 20
        (one,) = found.containers
        assert one.usage.cpu_ns <= found.usage.cpu_ns < MOST // 1000
        assert one.usage.cache <= 512 << 20
        record = PodRecord(spec=pod, phase=PodPhase.READY, created_at=1)
        member = ContainerRecord(spec=container, phase=ContainerPhase.RUNNING, created_at=1)
        use = PodUse(record=record, stats=found, containers=(member,))
        assert stats.pod_stats(use).linux.memory.working_set_bytes.value > 60 << 20
        assert metrics.pod_metrics(use).container_metrics
