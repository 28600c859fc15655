"""Calls that others can join."""

from __future__ import annotations

import asyncio

import pytest

from orlop.errors import AlreadyExists, Unavailable
from orlop.host.tasks import Tasks
from orlop.pods.joint import JointCalls


async def test_callers_join() -> None:
    tasks = Tasks()
    calls: JointCalls[int] = JointCalls(tasks)
    begun = 0

    async def work() -> int:
        nonlocal begun
        begun += 1
        await asyncio.sleep(0.01)
        return begun

    impatient = asyncio.ensure_future(calls.run("a", 1, work))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await asyncio.gather(*(calls.run("a", 1, work) for _ in range(3)), calls.run("b", 1, work)) == [
        2,
        2,
        2,
        2,
    ]
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert "a" not in calls
    first = asyncio.ensure_future(calls.run("a", 1, work))
    await asyncio.sleep(0)
    with pytest.raises(AlreadyExists):
        await calls.run("a", 2, work, conflict=lambda: AlreadyExists("differs"))
    assert await first == 3
    await tasks.close()


async def test_a_failure_frees_the_key() -> None:
    tasks = Tasks()
    calls: JointCalls[int] = JointCalls(tasks)

    async def fail() -> int:
        raise AlreadyExists("no")

    async def succeed() -> int:
        return 1

    with pytest.raises(AlreadyExists):
        await calls.run("a", 1, fail)
    assert await calls.run("a", 1, succeed) == 1
    await tasks.close()


async def test_closing_cancels_and_tells() -> None:
    tasks = Tasks()
    calls: JointCalls[None] = JointCalls(tasks)
    cleaned = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()

    waiting = asyncio.ensure_future(calls.run("a", 1, work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await tasks.close()
    assert cleaned.is_set()
    with pytest.raises(Unavailable, match="stopping"):
        await waiting
    with pytest.raises(Unavailable, match="stopping"):
        await calls.run("a", 1, work)
