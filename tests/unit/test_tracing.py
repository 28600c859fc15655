"""The steps of calls that are remembered."""

from __future__ import annotations

import asyncio

import pytest

from orlop import tracing


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_recent", type(tracing._recent)(maxlen=4))


async def test_steps_of_tasks_and_failures_are_a_calls_own() -> None:
    async def part(name: str) -> None:
        with tracing.span(name):
            await asyncio.sleep(0)

    async def call(pod: str) -> None:
        with pytest.raises(ValueError), tracing.span("cri.RunPodSandbox"):
            with tracing.span("sandbox.run", pod=pod):
                async with asyncio.TaskGroup() as group:
                    group.create_task(part("left"))
                    group.create_task(part("right"))
            raise ValueError

    await asyncio.gather(call("a"), call("b"))
    (found,) = tracing.recent("a")
    assert [(step.name, step.depth, step.failed) for step in found.steps] == [
        ("cri.RunPodSandbox", 0, True),
        ("sandbox.run", 1, False),
        ("left", 2, False),
        ("right", 2, False),
    ]
    assert all(0 <= step.duration_us <= found.steps[0].duration_us for step in found.steps)


def test_what_is_remembered_is_bounded() -> None:
    for number in range(9):
        with (
            tracing.span("cri.CreateContainer"),
            tracing.span("pods.resolve", pod="p", container=str(number)),
        ):
            for _ in range(2 * tracing.MOST_STEPS):
                with tracing.span("again"):
                    pass
    found = tracing.recent("p")
    assert [call.container for call in found] == ["5", "6", "7", "8"]
    assert all(len(call.steps) == tracing.MOST_STEPS for call in found)


def test_other_calls_cost_nothing_and_leave_nothing() -> None:
    assert tracing.span("cri.ListContainers") is tracing.span("cri.ExecSync")
    with tracing.span("cri.RunPodSandbox"):
        pass  # it failed before there was a pod
    assert not tracing.recent("")
