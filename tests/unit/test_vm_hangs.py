"""A pod whose guest says nothing any more ends, and its VM with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from orlop.hypervisor.base import Machine
from orlop.sandbox.spec import PodSpec
from orlop.sandbox.vm import pulse
from orlop.sandbox.vm.agent import AgentClient
from tests.patience import PATIENCE
from tests.unit.vm_double import Host, driver_of, host_of

POD = PodSpec(id="p1", name="p", uid="u", namespace="n")
WHY = "the guest hangs: its agent has said nothing for 120 seconds"


@pytest_asyncio.fixture
async def host(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    async with host_of(monkeypatch) as found:
        yield found


async def test_a_guest_that_hangs_is_the_end_of_its_pod(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = asyncio.Event()

    async def lost(machine: Machine, agent: AgentClient) -> str:
        await silent.wait()
        return WHY

    monkeypatch.setattr(pulse, "lost", lost)
    async with driver_of(host) as driver:
        sandbox = await driver.run(POD)
        ended = asyncio.create_task(sandbox.wait())
        await asyncio.sleep(0)
        assert host.machines and not ended.done()
        silent.set()
        async with asyncio.timeout(30 * PATIENCE):
            assert await ended == WHY
        assert not host.machines, "a guest that hangs does not run on"
        await sandbox.stop()
        await driver.discard(POD.id)
        assert host.left == {}
