"""Many VM pods at once on a host whose every step may fail, or be done and not answered, as a seed says.

The driver, its pool, sandboxes, containers and the agent's connection are real; the host is that of
:mod:`tests.unit.vm_double`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Awaitable

import pytest

from orlop.errors import DeadlineExceeded, OrlopError, Unavailable
from orlop.sandbox.spec import ContainerSpec, PodSpec, Root
from orlop.sandbox.vm import pool as pools
from orlop.sandbox.vm.driver import VmDriver
from orlop.sandbox.vm.pool import Pool
from tests.unit.vm_double import Host, driver_of, host_of

SEEDS = 12
PODS = 12
FAILS = 0.04


class Dice:
    """What fails, by a seed; nothing while it is off."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.on = True

    def falls(self, rate: float = FAILS) -> bool:
        return self.on and self.chance.random() < rate


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that does not wait for a quiet moment, on a host with memory enough."""
    monkeypatch.setattr(pools, "_QUIET", 0.0)
    monkeypatch.setattr(pools, "_CHECK_EVERY", 0.01)
    monkeypatch.setattr(pools, "_RETRY_AFTER", 0.01)
    monkeypatch.setitem(Pool.__init__.__kwdefaults__, "pressure", lambda: "")


def unreliable(host: Host, dice: Dice) -> None:
    step = host.step

    async def reliable_or_not(name: str) -> None:
        for _ in range(dice.chance.randrange(3)):
            await asyncio.sleep(0)
        if dice.falls():
            raise Unavailable(f"{name} fails")
        await step(name)
        if dice.falls(FAILS / 4):
            raise DeadlineExceeded(f"{name} was done, and nobody heard")

    host.step = reliable_or_not  # type: ignore[method-assign]


async def call(dice: Dice, work: Awaitable[object]) -> object:
    """A call that may fail, or be given up at any moment."""
    task = asyncio.ensure_future(work)
    if dice.falls(0.1):
        for _ in range(dice.chance.randrange(60)):
            await asyncio.sleep(0)
        task.cancel()
    with contextlib.suppress(OrlopError, asyncio.CancelledError):
        return await task
    return None


async def live(driver: VmDriver, dice: Dice, number: int) -> None:
    """A pod with containers, calls against each other, and an end that may fail."""
    pod = PodSpec(id=f"p{number}", name="p", uid="u", namespace="n")
    sandbox = await call(dice, driver.run(pod))
    if sandbox is not None:
        for name in ("a", "b"):
            spec = ContainerSpec(
                id=f"{pod.id}-{name}",
                pod_id=pod.id,
                name=name,
                root=Root(layers=("/dev/null",)),
                args=("sh",),
            )
            work = [
                sandbox.create(spec),  # type: ignore[attr-defined]
                sandbox.start(spec.id),  # type: ignore[attr-defined]
                sandbox.delete(spec.id),  # type: ignore[attr-defined]
            ]
            if dice.chance.random() < 0.4:
                await asyncio.gather(*(call(dice, one) for one in work))
            else:
                for one in work:
                    await call(dice, one)
        if dice.chance.random() < 0.5:
            ends = [call(dice, sandbox.stop()) for _ in range(2)]  # type: ignore[attr-defined]
            await asyncio.gather(*ends, call(dice, driver.discard(pod.id)))
    await call(dice, driver.discard(pod.id))


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_fails_all_of_it_can_be_taken_back(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    async with host_of(monkeypatch) as host:
        dice = Dice(seed)
        async with driver_of(host, pool=seed % 3) as driver:
            before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            unreliable(host, dice)
            await asyncio.gather(*(live(driver, dice, number) for number in range(PODS)))
            dice.on = False
            for number in range(PODS):
                await driver.discard(f"p{number}")
            assert await driver.traces() == []
            assert host.attached == set()
        assert host.left == {}
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
