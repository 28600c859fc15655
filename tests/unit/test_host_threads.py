"""Functions on threads, which a cancelled caller waits for."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from pathlib import Path

import pytest

from orlop.host import threads
from orlop.host.tasks import beside, uncancelled

_NAME = contextvars.ContextVar("name", default="")


async def test_a_call_returns_raises_and_knows_its_context() -> None:
    _NAME.set("pod 5a1c")
    assert await threads.call(
        lambda: (_NAME.get(), threading.current_thread() is threading.main_thread())
    ) == (
        "pod 5a1c",
        False,
    )
    assert await threads.call(int, "12", base=3) == 5
    with pytest.raises(FileNotFoundError):
        await threads.call(os.stat, "/no/such/file")


async def test_a_cancelled_caller_leaves_no_thread_at_work(tmp_path: Path) -> None:
    """Else whoever cleans up after it removes what the thread is still making."""
    begun, go = threading.Event(), threading.Event()

    def make() -> None:
        begun.set()
        go.wait(5)
        (tmp_path / "made").mkdir()

    async with beside(threads.call(make)) as task:
        while not begun.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("own", [True, False], ids=["own thread", "pool"])
async def test_what_a_cancelled_caller_cannot_take_is_released(own: bool) -> None:
    opened: list[int] = []
    closed: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def make() -> int:
        begun.set()
        go.wait(5)
        opened.append(7)
        return 7

    work = (
        threads.in_own_thread(make, unwanted=closed.append)
        if own
        else uncancelled(threads.call(make), unwanted=closed.append)
    )
    async with beside(work) as task:
        while not begun.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert opened == closed == [7]


async def test_what_nobody_minds_holds_nobody_up() -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def end() -> None:
        begun.set()
        go.wait(60)
        ended.set()

    threads.unheeded(end)
    assert not ended.is_set(), "it ends when it is let go, and we are here already"
    go.set()
    assert await threads.call(begun.wait, 60)
    assert await threads.call(ended.wait, 60)
