"""Owned tasks, work that a cancellation does not stop, and undo that goes on."""

from __future__ import annotations

import asyncio
import logging

import pytest

from orlop.errors import InvalidArgument, NotUndone, Unavailable
from orlop.host.tasks import (
    Tasks,
    Undo,
    beside,
    end,
    failures_of,
    roll_back,
    together,
    uncancelled,
    wanted_or_undone,
)


async def fail(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


async def test_a_failure_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()
    tasks.spawn(fail(Unavailable("the socket is gone")), "watch pod 5a1c")
    tasks.spawn(fail(KeyError("lun")), "watch pod 77ee")
    await asyncio.sleep(0.01)
    assert "watch pod 5a1c: the socket is gone" in caplog.text
    assert "watch pod 77ee" in caplog.text and "KeyError" in caplog.text
    await tasks.close()


async def test_an_expected_failure_is_told_to_the_one_who_waits(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()
    with pytest.raises(InvalidArgument):
        await tasks.spawn(fail(InvalidArgument("no")), "expected", awaited=True)
    assert "expected" not in caplog.text
    with pytest.raises(KeyError):
        await tasks.spawn(fail(KeyError("bug")), "unexpected", awaited=True)
    assert "unexpected" in caplog.text
    await tasks.close()


async def test_closing_waits_for_what_cleans_up() -> None:
    tasks = Tasks()
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(1)

    tasks.spawn(work(), "work")
    await asyncio.sleep(0)
    await tasks.close()
    assert cleaned
    with pytest.raises(Unavailable):
        tasks.spawn(work(), "late")


async def test_closing_right_after_a_task_has_ended() -> None:
    tasks = Tasks()
    ending = asyncio.Event()

    async def work() -> None:
        ending.set()

    tasks.spawn(work(), "work")
    await ending.wait()  # it is done, and nobody was told so far
    await tasks.close()


async def test_a_task_may_close_its_own_set() -> None:
    tasks = Tasks()
    task = tasks.spawn(tasks.close(), "closer")
    async with asyncio.timeout(20):
        await task


async def test_what_runs_beside_ends_with_the_body() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(1)

    async with beside(work()) as task:
        await asyncio.sleep(0)
    assert ended and task.cancelled()


async def test_ending_goes_on_when_cancelled() -> None:
    ended = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            ended.append(1)

    tasks = Tasks()
    ending = [tasks.spawn(slow(), "slow") for _ in range(2)]
    await asyncio.sleep(0)
    ender = tasks.spawn(end(*ending), "ender")
    await asyncio.sleep(0.001)
    ender.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ender
    assert len(ended) == 2
    await tasks.close()


async def test_what_goes_on_without_its_caller_is_undone_when_that_is_cancelled() -> None:
    steps, go_on = [], asyncio.Event()

    async def make() -> str:
        await go_on.wait()
        steps.append("made")
        return "it"

    async def undo(made: str) -> None:
        await asyncio.sleep(0)
        steps.append(f"{made} undone")

    caller = asyncio.ensure_future(wanted_or_undone("it", make(), undo))
    for _ in range(2):
        await asyncio.sleep(0)
        caller.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert steps == ["made", "it undone"]
    assert await wanted_or_undone("it", make(), undo) == "it" and steps[2:] == ["made"]


async def test_uncancelled_work_runs_to_its_end() -> None:
    steps = []

    async def work() -> int:
        for number in range(3):
            await asyncio.sleep(0.001)
            steps.append(number)
        return 7

    assert await uncancelled(work()) == 7
    steps.clear()
    async with beside(uncancelled(work())) as task:
        for _ in range(5):
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert steps == [0, 1, 2]


async def test_a_failure_beside_a_cancellation_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Unavailable):
        await uncancelled(fail(Unavailable("gone")))
    assert not caplog.records
    async with beside(uncancelled(fail(Unavailable("gone")))) as task:
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert "gone" in caplog.text


async def test_a_roll_back_does_not_hide_what_led_to_it(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidArgument):
        try:
            raise InvalidArgument("first")
        except BaseException:
            await roll_back("pod 5a1c", fail(Unavailable("second")))
            raise
    assert "pod 5a1c cannot be undone: second" in caplog.text


async def test_together_fails_as_plainly_as_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(value: int) -> int:
        return value

    assert await together(answer(1), answer(2)) == (1, 2)
    with pytest.raises(InvalidArgument):
        await together(fail(InvalidArgument("one")), fail(Unavailable("two")), asyncio.sleep(60))
    assert "two" in caplog.text


async def test_failures_are_collected_when_all_have_ended() -> None:
    done = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        if number == 1:
            raise ValueError
        done.append(number)

    errors = await failures_of(*(work(number) for number in range(3)))
    assert (done, len(errors)) == ([0, 2], 1)


async def test_an_undo_goes_on_and_names_all_that_is_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    done = []

    async def work() -> None:
        done.append(1)

    undo = Undo("pod 5a1c")
    assert not await undo.step("its VM", fail(Unavailable("QEMU does not end")))
    assert await undo.step("its files", work())
    assert not await undo.step("its network", fail(OSError("busy")))
    assert not await undo.step("its cgroup", fail(KeyError("bug")))
    assert done and not undo.complete
    with pytest.raises(NotUndone) as caught:
        undo.finish()
    text = str(caught.value)
    assert "its VM: QEMU does not end" in text and "its network: busy" in text and "its cgroup" in text
    assert "its files" not in text
    assert "KeyError" in caplog.text, "a bug is told with its traceback"


async def test_an_undo_that_succeeds_is_silent() -> None:
    undo = Undo("pod 5a1c")
    assert await undo.step("its VM", asyncio.sleep(0))
    assert undo.complete
    undo.finish()


async def test_a_cancellation_is_not_lost_in_what_fails_because_of_it() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise Unavailable("it was stopped") from None

    task = asyncio.create_task(together(stubborn()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
