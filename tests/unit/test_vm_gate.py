"""Who starts when many want to: the gate's order, and that no place is ever lost."""

from __future__ import annotations

import asyncio

import pytest

from orlop.errors import FailedPrecondition
from orlop.sandbox.spec import ContainerSpec, PodSpec, Root
from orlop.sandbox.vm.gate import Gate
from tests.unit.vm_double import driver_of, host_of


async def test_the_pod_that_came_first_goes_first_with_each_step() -> None:
    gate = Gate(1)
    done: list[str] = []
    numbers = {name: gate.number() for name in "abc"}

    async def pod(name: str) -> None:
        for step in ("run", "create", "start"):
            async with gate.place(numbers[name]):
                await asyncio.sleep(0)
                done.append(f"{name} {step}")
            await asyncio.sleep(0)

    await asyncio.gather(*(pod(name) for name in "abc"))
    ends = [one[0] for one in done if one.endswith("start")]
    assert ends == ["a", "b", "c"]
    # While the first one is between two steps the next one may begin, and no more than that.
    assert [one for one in done[:4] if one.startswith("c")] == []


async def test_there_are_as_many_at_once_as_places() -> None:
    gate = Gate(2)
    inside = most = 0

    async def step() -> None:
        nonlocal inside, most
        async with gate.place(gate.number()):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1

    await asyncio.gather(*(step() for _ in range(20)))
    assert most == 2 and gate.free == 2 and gate.waiting == 0


async def test_a_step_that_takes_long_keeps_nobody_waiting() -> None:
    gate = Gate(1, overtime=0.01)
    hangs = asyncio.Event()

    async def late() -> None:
        async with gate.place(gate.number()):
            await hangs.wait()

    task = asyncio.create_task(late())
    await asyncio.sleep(0)
    async with asyncio.timeout(20), gate.place(gate.number()):
        assert not task.done()
    hangs.set()
    await task
    assert gate.free == 1


async def test_no_place_is_lost_to_who_gives_up() -> None:
    gate = Gate(1)

    async def step() -> None:
        async with gate.place(gate.number()):
            await asyncio.sleep(0)

    for turns in range(12):
        tasks = [asyncio.create_task(step()) for _ in range(4)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks[1:3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert gate.free == 1 and gate.waiting == 0


async def test_a_failure_gives_its_place_back() -> None:
    gate = Gate(1)
    with pytest.raises(ValueError, match="x"):
        async with gate.place(gate.number()):
            raise ValueError("x")
    assert gate.free == 1


async def test_pods_that_come_at_once_are_ready_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async with host_of(monkeypatch) as host, driver_of(host) as driver:
        driver._gate = Gate(1)
        layer = host.place / "layer"
        layer.write_bytes(bytes(4096))
        ready: list[int] = []

        async def pod(number: int) -> None:
            spec = PodSpec(id=f"pod{number}", name=f"p{number}", uid="u", namespace="n")
            root = Root(layers=(str(layer),))
            container = ContainerSpec(id=f"c{number}", pod_id=spec.id, name="c", args=("true",), root=root)
            sandbox = await driver.run(spec)
            await sandbox.create(container)
            ready.append(number)

        async with asyncio.timeout(60):
            await asyncio.gather(*(pod(number) for number in range(8)))
        # Between two of its calls the next pod may begin: it is one behind at most.
        assert all(abs(number - place) <= 1 for place, number in enumerate(ready)), ready
        assert driver.gauges()["orlop_vm_starts_waiting"] == 0
        for number in range(8):
            await driver.discard(f"pod{number}")
    assert host.left == {}


async def test_a_pod_stopped_while_its_container_waits_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with host_of(monkeypatch) as host, driver_of(host) as driver:
        gate = Gate(1)
        spec = PodSpec(id="p1", name="p", uid="u", namespace="n")
        sandbox = await driver.run(spec)
        sandbox._gate = gate
        container = ContainerSpec(id="c", pod_id="p1", name="c", args=("true",), root=Root(layers=("/none",)))
        async with gate.place(0):
            creating = asyncio.create_task(sandbox.create(container))
            await asyncio.sleep(0)
            await driver.discard("p1")
        with pytest.raises(FailedPrecondition, match="does not run any more"):
            await creating
        assert gate.free == 1
    assert host.left == {}
