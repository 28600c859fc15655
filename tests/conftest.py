"""Every test fails if a task, a thread or a child process of its own survives it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import settings

from tests.patience import PATIENCE

# The same examples every time where a failure must mean a change: HYPOTHESIS_PROFILE=ci.
# No deadline: a busy machine is no defect.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

BUILDING = 3600
"""Seconds in which Kubernetes, for example, must have been built."""
BUILDS_NOTHING = "unit"
GRACE = 2.0 * PATIENCE
"""Seconds that what was told to end may take."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test of a suite an hour: it waits for what the suite builds once, on a new machine."""
    suites = {BUILDS_NOTHING}
    for item in items:
        if item.path.parent.name not in suites:
            suites.add(item.path.parent.name)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(BUILDING))


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(int(pid) for pid in (task / "children").read_text().split())
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def no_child_survives() -> Iterator[None]:
    before = _children()
    yield
    deadline = time.monotonic() + GRACE
    while left := _children() - before:
        if time.monotonic() > deadline:
            pytest.fail(f"child processes survived the test: { {pid: _name(pid) for pid in left} }")
        time.sleep(0.02)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + GRACE
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon and not thread.name.startswith(("asyncio_", "ThreadPoolExecutor")):
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"a thread survived the test: {thread}"


@pytest_asyncio.fixture(autouse=True)
async def no_task_survives() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    deadline = time.monotonic() + GRACE
    while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
        if time.monotonic() > deadline:
            pytest.fail(f"tasks survived the test: {left}")
        await asyncio.sleep(0.01)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
