"""Containers that keep to their own layers' sizes, and together fill the host's disk."""

from __future__ import annotations

import asyncio

import pytest

from orlop.errors import OrlopError, ResourceExhausted
from orlop.sandbox.vm import diskbound
from tests.e2e.vm_environment import container_spec, environment, execute, pod_spec
from tests.patience import PATIENCE


async def test_many_layers_do_not_fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskbound, "_EVERY", 3600.0)
    fill = ("dd", "if=/dev/urandom", "of=/file", "bs=1M", "count=40")
    async with environment(scratch_mib=64, pod_disk_mib=64) as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        containers = [container_spec(pod, "sleep", "1000") for _ in range(2)]
        for container in containers:
            await sandbox.create(container)
            await sandbox.start(container.id)
        # Nobody looks, and the guest's layers let it through: 80 MiB are on the host's disk.
        for container in containers:
            assert (await execute(sandbox, container.id, *fill))[2] == 0
            await execute(sandbox, container.id, "sync")
        with pytest.raises(ResourceExhausted, match=r"more than vm\.pod_disk_mib \(64\) allows"):
            await sandbox.create(container_spec(pod, "true"))
        # Somebody looks.
        monkeypatch.setattr(diskbound, "_EVERY", 0.1)
        looking = asyncio.create_task(diskbound.watch(lambda: [sandbox]))
        async with asyncio.timeout(60 * PATIENCE):
            assert "vm.pod_disk_mib (64)" in await sandbox.wait()
        looking.cancel()
        for container in containers:
            status = await sandbox.wait_container(container.id)
            assert status.code == 137 and "vm.pod_disk_mib (64)" in status.message
        with pytest.raises(OrlopError):
            await sandbox.create(container_spec(pod, "true"))
