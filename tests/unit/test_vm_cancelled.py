"""Nothing of a VM is left behind, wherever its making or removal is cancelled, and whatever fails then."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from orlop.errors import NotUndone, Unavailable
from orlop.sandbox.spec import ContainerSpec, PodSpec, Root
from orlop.sandbox.vm import pool as pools
from orlop.sandbox.vm.pool import Pool
from tests.cancelling import cancelled_everywhere
from tests.unit.vm_double import Host, driver_of, host_of

POD = PodSpec(id="p1", name="p", uid="u", namespace="n")


@pytest_asyncio.fixture
async def host(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    async with host_of(monkeypatch) as found:
        yield found


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that does not wait for a quiet moment, on a host with memory enough."""
    monkeypatch.setattr(pools, "_QUIET", 0.0)
    monkeypatch.setattr(pools, "_CHECK_EVERY", 0.01)
    monkeypatch.setattr(pools, "_RETRY_AFTER", 0.01)
    monkeypatch.setitem(Pool.__init__.__kwdefaults__, "pressure", lambda: "")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


async def test_a_run_cancelled_anywhere_leaves_nothing(host: Host) -> None:
    async with driver_of(host) as driver:
        before, open_before = asyncio.all_tasks(), descriptors()
        runs = 0
        async for ended in cancelled_everywhere(lambda: driver.run(POD)):
            runs += 1
            if ended:
                assert host.machines and host.attached
                await driver.discard(POD.id)
            assert host.left == {}, f"cancelled after {runs} turns"
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == before, f"cancelled after {runs} turns"
            assert descriptors() <= open_before, f"cancelled after {runs} turns"
        assert runs > 20


async def test_a_run_in_a_clone_of_the_pool_cancelled_anywhere_leaves_nothing(host: Host) -> None:
    async with driver_of(host, pool=1) as driver:

        async def run() -> None:
            await driver.run(POD)

        async for ended in cancelled_everywhere(run):
            if ended:
                await driver.discard(POD.id)
            assert not host.attached
            assert not (host.place / "state" / "vm-pods" / POD.id).exists()
            while driver.gauges()["orlop_vm_pool_ready"] < 1:  # noqa: ASYNC110 - the next run claims it
                await asyncio.sleep(0)
            assert len(host.machines) == len(host.spaces) == 1
    assert host.left == {}


async def test_a_discard_cancelled_anywhere_is_complete(host: Host) -> None:
    async with driver_of(host) as driver:
        before = asyncio.all_tasks()

        async def discard() -> None:
            await driver.discard(POD.id)

        def prepared() -> Coroutine[Any, Any, None]:
            return discard()

        await driver.run(POD)
        async for ended in cancelled_everywhere(prepared):
            # Before its first step a call that is cancelled never was.
            if host.left:
                assert "stop the machine" not in host.done
                await driver.discard(POD.id)
            assert host.left == {}
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == before
            if not ended:
                await driver.run(POD)
                host.done.clear()


async def test_a_clone_cancelled_anywhere_leaves_nothing(host: Host) -> None:
    async with driver_of(host) as driver:
        cloner = driver._state.cloner  # type: ignore[union-attr]
        open_before = descriptors()
        made: list[Path] = []

        async def make() -> None:
            clone = await cloner.make()
            made.append(clone.directory)
            await clone.agent.close()

        async for ended in cancelled_everywhere(make):
            if made:
                await cloner.discard(made.pop())
            assert host.left == {}
            assert descriptors() <= open_before + (1 if ended else 0)


@pytest.mark.parametrize("failing", ["attach to the network", "make the tap", "restored", "join the tap"])
async def test_a_run_that_fails_anywhere_leaves_nothing(host: Host, failing: str) -> None:
    async with driver_of(host) as driver:
        before = asyncio.all_tasks()
        host.failing = {failing}
        with pytest.raises(Unavailable, match=failing):
            await driver.run(POD)
        assert host.left == {}
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before


UNDONE = {
    "stop the machine": set[str](),
    # The plug-ins look in the namespace for what they made, and leave what they do not find.
    "detach from the network": {"attached", "spaces", "files"},
    "remove the namespace": {"spaces", "files"},
    "release the share": {"files"},
}


@pytest.mark.parametrize("failing", UNDONE)
async def test_an_undo_goes_on_past_a_step_that_fails(
    host: Host, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A pod's start fails at its last step, and then a step of taking it back."""
    async with driver_of(host) as driver:
        host.failing = {"join the tap", failing}
        with pytest.raises(Unavailable, match="join the tap"):
            await driver.run(POD)
        assert not host.machines, "whatever else fails, nothing runs on"
        assert set(host.left) == UNDONE[failing]
        if UNDONE[failing]:
            assert failing in caplog.text, "what is left is told"
        host.failing.clear()
        await driver.discard(POD.id)
        assert host.left == {}


@pytest.mark.parametrize("failing", UNDONE)
async def test_a_stop_ends_the_vm_and_names_all_that_fails(host: Host, failing: str) -> None:
    async with driver_of(host) as driver:
        before = asyncio.all_tasks()
        sandbox = await driver.run(POD)
        host.failing = {failing, "release the share"}
        with pytest.raises(NotUndone) as caught:
            await sandbox.stop()
        assert failing in str(caught.value) and "release the share" in str(caught.value)
        assert not host.machines, "a VM that was to be stopped does not run on"
        with pytest.raises(NotUndone):
            await driver.discard(POD.id)
        host.failing.clear()
        await driver.discard(POD.id)
        assert host.left == {}
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before


async def test_the_network_goes_after_the_vm_and_before_its_namespace(host: Host) -> None:
    async with driver_of(host) as driver:
        sandbox = await driver.run(POD)
        host.done.clear()
        await sandbox.stop()
        order = [host.done.index(name) for name in ("stop the machine", "detach from the network")]
        assert order == sorted(order)
        assert host.done.index("detach from the network") < host.done.index("remove the namespace")
        await driver.discard(POD.id)
        # And so it goes for a pod of which only the files are known.
        host.failing = {"join the tap"}
        host.done.clear()
        with pytest.raises(Unavailable):
            await driver.run(POD)
        steps = ("discard the machine", "detach from the network", "remove the namespace")
        order = [host.done.index(name) for name in steps]
        assert order == sorted(order)


async def test_a_pool_closed_at_any_moment_ends_its_clones(host: Host) -> None:
    for turns in range(0, 400, 7):
        async with driver_of(host, pool=2):
            for _ in range(turns):
                await asyncio.sleep(0)
        assert host.left == {}, f"closed after {turns} turns"


async def test_a_pool_whose_closing_is_cancelled_ends_its_clones(host: Host) -> None:
    for turns in range(1, 60, 2):
        async with driver_of(host, pool=2) as driver:
            while driver.gauges()["orlop_vm_pool_ready"] < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            pool = driver._state.pool  # type: ignore[union-attr]
            closing = asyncio.ensure_future(pool.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            assert host.left == {}, f"cancelled after {turns} turns"


async def test_a_container_cancelled_anywhere_leaves_nothing(host: Host) -> None:
    layer = host.place / "layer"
    layer.write_bytes(bytes(4096))
    spec = ContainerSpec(id="c1", pod_id=POD.id, name="c", args=("true",), root=Root(layers=(str(layer),)))
    async with driver_of(host) as driver:
        sandbox = await driver.run(POD)
        (machine,) = host.machines.values()
        await asyncio.sleep(0.01)  # until all that watches the VM has begun
        before, open_before = asyncio.all_tasks(), descriptors()
        pod_files = host.place / "state" / "vm-pods" / POD.id
        async for ended in cancelled_everywhere(lambda: sandbox.create(spec)):
            if ended:
                assert machine.disks
                await sandbox.delete(spec.id)
            assert machine.disks == set()
            assert [path.name for path in pod_files.iterdir()] == ["pod.json"]
            assert not list((host.place / "root").rglob("*.img"))
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == before
            assert descriptors() <= open_before
        await driver.discard(POD.id)
    assert host.left == {}
