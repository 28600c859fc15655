"""A pod's control group on the host, limited as a kubelet limits it: to what the containers may use."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from orlop.host.cgroups import Cgroup, Limits
from orlop.sandbox.spec import Resources
from tests.e2e.vm_environment import container_spec, environment, execute, pod_spec, until
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MIB = 1 << 20
LIMIT = 48 * MIB
# Twice what the container may use: the rest stays in the guest's page cache as long as there is room.
FILL = "for n in 1 2 3; do dd if=/dev/zero of=/f$n bs=1M count=32; done 2>/dev/null; cat /f* >/dev/null"


@pytest.fixture
def group() -> Iterator[Cgroup]:
    """The group of a pod, as the kubelet makes it before it asks for the pod."""
    made = Cgroup(f"/orlop-test-{secrets.token_hex(4)}")
    made.create()
    made.set(Limits(memory_limit=LIMIT))
    yield made
    for directory in made.directories():
        directory.rmdir()


async def test_a_pod_lives_within_a_limit_that_counts_its_containers(group: Cgroup) -> None:
    async with environment(pool=0) as env:
        pod = pod_spec(cgroup_parent=group.path, resources=Resources(memory_limit=LIMIT))
        sandbox = await env.run(pod)
        size = sandbox._clone.machine.shape.memory_mib * MIB
        assert group.memory_limit() > size
        spec = container_spec(pod, "sleep", "1000", resources=Resources(memory_limit=LIMIT))
        await sandbox.create(spec)
        await sandbox.start(spec.id)
        assert await execute(sandbox, spec.id, "sh", "-c", FILL) == (b"", b"", 0)
        # A kubelet that changes a pod writes the limit anew, and then tells the runtime.
        group.set(Limits(memory_limit=max(LIMIT, size // 2)))
        await sandbox.resize(Resources(), Resources(memory_limit=LIMIT))
        assert group.memory_limit() > size
        assert await execute(sandbox, spec.id, "true") == (b"", b"", 0)
        await env.driver.discard(pod.id)


async def test_what_a_kubelet_reads_of_a_raised_group_is_no_wish(group: Cgroup) -> None:
    async with environment(pool=0) as env:
        pod = pod_spec(cgroup_parent=group.path, resources=Resources(memory_limit=LIMIT))
        sandbox = await env.run(pod)
        raised, size = group.memory_limit(), sandbox._clone.machine.shape.memory_mib
        for quota in (50_000, 60_000):
            # What does not change it takes from the group, tells it of the pod, and then writes its own.
            asked = Resources(memory_limit=raised, cpu_quota=quota, cpu_period=100_000)
            assert (await sandbox.resize(Resources(), asked)).memory_limit == LIMIT
            assert (group.memory_limit(), sandbox._clone.machine.shape.memory_mib) == (raised, size)
        group.set(Limits(memory_limit=raised - 4 * MIB))
        await until(lambda: group.memory_limit() == raised, 60 * PATIENCE)
        await env.driver.discard(pod.id)


async def test_a_limit_with_room_stays_as_it_is(group: Cgroup) -> None:
    group.set(Limits(memory_limit=1024 * MIB))
    async with environment(pool=0) as env:
        pod = pod_spec(cgroup_parent=group.path, resources=Resources(memory_limit=LIMIT))
        await env.run(pod)
        assert group.memory_limit() == 1024 * MIB
        await env.driver.discard(pod.id)
