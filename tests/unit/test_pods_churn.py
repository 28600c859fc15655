"""Clients against each other on one node whose every step may fail, be late, or be done and not answered.

The sandboxes are those of :mod:`tests.unit.pods_double`; pods, containers, recovery and journal are real.
What a seed finds, it finds again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable
from pathlib import Path

import pytest

from orlop.errors import DeadlineExceeded, OrlopError, ResourceExhausted, Unavailable
from orlop.pods import containers as verbs
from orlop.pods.journal import Journal
from orlop.pods.records import ContainerPhase
from orlop.pods.requests import ContainerRequest
from orlop.pods.service import PodService
from tests.patience import PATIENCE
from tests.unit.pods_double import World, make_service, pod_spec

SEEDS = 12
CLIENTS = 5
PODS = 12
FAILS = 0.06


class Unreliable(World):
    """A world in which a seed decides what fails."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.failing = True

    async def effect(self, name: str) -> None:
        await super().effect(name)
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)
        if self.failing and self.chance.random() < FAILS:
            raise Unavailable(f"{name} failed")

    def step(self, name: str) -> None:
        super().step(name)
        if self.failing and name.startswith("after ") and self.chance.random() < FAILS:
            raise DeadlineExceeded(f"the answer to {name.removeprefix('after ')} was lost")


class Churn:
    """One node, its clients, and what they were told."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place = place
        self.chance = random.Random(seed)
        self.world = Unreliable(self.chance)
        self.told: set[str] = set()
        self.service: PodService | None = None

    async def start(self) -> PodService:
        """A daemon that knows what is on disk."""
        service, _ = make_service(self.place, self.world, default="vm")
        service.ledger._journal = Journal(self.place / "journal.db")
        await service.open()
        self.service = service
        return service

    async def die(self) -> None:
        """The daemon ends as if killed: nothing is told to anybody, what runs goes on."""
        assert self.service is not None
        await self.service._node.tasks.close()
        await self.service.ledger.close()

    async def call(self, work: Awaitable[object]) -> object:
        """A call that may be given up at any moment, and that may fail."""
        task = asyncio.ensure_future(work)
        if self.chance.random() < 0.15:
            for _ in range(self.chance.randrange(12)):
                await asyncio.sleep(0)
            task.cancel()
        with contextlib.suppress(OrlopError, asyncio.CancelledError):
            return await task
        return None

    async def client(self, service: PodService, names: list[str]) -> None:
        """Pods one after the other, each stopped and removed in the end or left."""
        while names:
            spec = pod_spec(names.pop())
            runs = [self.call(service.run_pod(spec)) for _ in range(self.chance.choice((1, 1, 2)))]
            pod_id = next((found for found in await asyncio.gather(*runs) if isinstance(found, str)), "")
            if pod_id:
                await self._use(service, pod_id)
            if pod_id and self.chance.random() < 0.7:
                steps = [service.stop_pod, service.remove_pod]
                if self.chance.random() < 0.4:
                    await asyncio.gather(*(self.call(step(pod_id)) for step in steps))
                else:
                    for step in steps:
                        await self.call(step(pod_id))

    async def _use(self, service: PodService, pod_id: str) -> None:
        for name in ("a", "b")[: self.chance.choice((1, 2))]:
            wanted = ContainerRequest(pod_id=pod_id, name=name, image="busybox")
            made = await self.call(service.create_container(wanted))
            if not isinstance(made, str):
                continue
            assert service.container(made).phase is ContainerPhase.CREATED
            calls = [
                lambda made=made: service.start_container(made),
                lambda made=made: service.stop_container(made, 0),
                lambda made=made: service.start_container(made),
                lambda made=made: service.remove_container(made),
                lambda: service.stop_pod(pod_id),
                lambda made=made: service.exec_sync(made, ("echo", "x"), 1),
            ]
            together = self.chance.sample(calls, self.chance.choice((1, 2, 3)))
            await asyncio.gather(self.call(calls[0]()), *(self.call(one()) for one in together))
            if self.chance.random() < 0.3:
                self.world.exit(made, 3)

    async def settled(self) -> None:
        """Without failures, what is told and what runs come to agree."""
        service = self.service
        assert service is not None
        self.world.failing = False
        await service.recovered()
        await service._recovery.sweep()
        limit = asyncio.get_running_loop().time() + 10 * PATIENCE
        while wrong := self.disagreements(service):
            assert asyncio.get_running_loop().time() < limit, wrong
            await asyncio.sleep(0.02)

    def disagreements(self, service: PodService) -> list[str]:
        """Containers that run and are told not to, or the other way round."""
        wrong = []
        running = {
            key
            for pod in self.world.pods.values()
            for key, one in pod.containers.items()
            if one.state == "running"
        }
        for record in service.containers():
            if (record.phase is ContainerPhase.RUNNING) is not (record.id in running):
                wrong.append(f"{record.id[:8]} is {record.phase}, {record.reason} {record.message}")
        known = {record.id for record in service.ledger.all_containers()}
        wrong += [f"{key[:8]} runs and is in no record" for key in running - known]
        return wrong

    async def emptied(self) -> None:
        """Everything can be removed, and nothing is left of it, on the node or in the daemon's memory."""
        service = self.service
        assert service is not None
        for record in service.pods():
            await service.stop_pod(record.id)
            await service.remove_pod(record.id)
        await service._recovery.sweep()
        ledger, node = service.ledger, service._node
        assert self.world.pods == {}
        assert self.world.images.used == {}
        assert ledger.all_pods() == [] and ledger.all_containers() == []
        assert ledger._by_key == {} and ledger._by_pod == {} and ledger._locks == {}
        assert ledger._unwritten == set() and node.sandboxes == {} and node.recovering == {}
        assert not [task for task in node.watchers.values() if not task.done()]
        assert node.watchers == {}
        await service.close()


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_what_is_told_is_what_runs_and_all_of_it_can_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(verbs, "WATCH_INTERVAL", 0.01)
    churn = Churn(tmp_path, seed)
    write = Journal._write

    async def unreliable(self: Journal, statement: str, *values: str | bytes) -> None:
        if churn.world.failing and churn.chance.random() < FAILS / 2:
            raise ResourceExhausted("the journal cannot be written: the disk is full")
        await write(self, statement, *values)

    monkeypatch.setattr(Journal, "_write", unreliable)
    for life in range(3):
        churn.world.failing = False
        service = await churn.start()
        churn.world.failing = True
        names = [f"pod-{life}-{number}" for number in range(PODS)]
        clients = [asyncio.ensure_future(churn.client(service, names)) for _ in range(CLIENTS)]
        if life < 2 and seed % 2:
            await asyncio.sleep(churn.chance.uniform(0, 0.1))
            await churn.die()
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        else:
            async with asyncio.timeout(60 * PATIENCE):
                await asyncio.gather(*clients)
            await churn.settled()
            if life < 2:
                await service.close()
    await churn.emptied()
