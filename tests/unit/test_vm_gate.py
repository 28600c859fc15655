"""Who starts when many want to: the gate's order, and that no place is ever lost."""

from __future__ import annotations

import asyncio

import pytest

from orlop.sandbox.vm.gate import Gate


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
    async with asyncio.timeout(10), gate.place(gate.number()):
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
