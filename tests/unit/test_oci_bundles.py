"""The verbs of an OCI runtime over pods in memory: calls against each other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from orlop.bundle import document
from orlop.errors import FailedPrecondition, NotFound
from orlop.host.process import process_start_time
from orlop.oci import questions
from orlop.oci.bundles import Bundles
from orlop.oci.companion import Companion
from orlop.oci.model import KEY, Bundle
from orlop.oci.protocol import FRONT
from orlop.pods.requests import ContainerRequest
from orlop.pods.service import PodService
from tests.patience import PATIENCE
from tests.unit.pods_double import World, make_service, pod_spec


@contextlib.asynccontextmanager
async def node(root: Path, world: World) -> AsyncIterator[tuple[PodService, Bundles]]:
    pods, _ = make_service(root, world)
    await pods.open()
    bundles = Bundles(pods, ())
    bundles.open()
    try:
        yield pods, bundles
    finally:
        await bundles.close()
        await pods.close()


GONE = Companion(pid=1 << 22, since=1)


@contextlib.contextmanager
def standing() -> Iterator[Companion]:
    """A process that stands in for a container's, and hears nothing."""
    child = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
    try:
        yield Companion(pid=child.pid, since=process_start_time(child.pid))
    finally:
        child.kill()
        child.wait()


async def made(
    pods: PodService,
    root: Path,
    pod_id: str,
    name: str,
    companion: Companion = GONE,
    *,
    after_end: tuple[document.OciHook, ...] = (),
) -> None:
    """A container of a caller's."""
    bundle = Bundle(
        root="/r",
        id=name,
        directory=os.fspath(root),
        rootfs=os.fspath(root),
        version="1.2.0",
        created="",
        companion=companion,
        after_end=after_end,
    )
    await pods.create_container(
        ContainerRequest(
            pod_id=pod_id,
            name=name,
            directory=os.fspath(root),
            command=("sh",),
            annotations={KEY: msgspec.json.encode(bundle).decode()},
        )
    )


async def test_the_vm_goes_with_its_containers_though_they_are_deleted_at_once(tmp_path: Path) -> None:
    world = World()
    async with node(tmp_path, world) as (pods, bundles):
        pod_id = await pods.run_pod(pod_spec(front=FRONT))
        for name in ("one", "two"):
            await made(pods, tmp_path, pod_id, name)
        world.delays["delete"] = 0.05
        gone = [bundles.delete(questions.ToDelete(root="/r", id=name)) for name in ("one", "two")]
        await asyncio.gather(*gone)
        assert not world.pods


@pytest.mark.parametrize("force", [True, False])
async def test_of_two_deletes_at_once_one_finds_it_gone(tmp_path: Path, force: bool) -> None:
    world = World()
    async with node(tmp_path, world) as (pods, bundles):
        pod_id = await pods.run_pod(pod_spec(front=FRONT))
        hook = document.OciHook(path="/bin/sh", args=("sh", "-c", f"echo ended >> {tmp_path}/told"))
        await made(pods, tmp_path, pod_id, "one", after_end=(hook,))
        asked = questions.ToDelete(root="/r", id="one", force=force)
        told = await asyncio.gather(bundles.delete(asked), bundles.delete(asked), return_exceptions=True)
        assert told[0] is None
        assert told[1] is None if force else isinstance(told[1], NotFound), told
        assert not world.pods
    assert (tmp_path / "told").read_text() == "ended\n"


async def test_one_that_is_started_before_its_deletion_has_its_turn_stays(tmp_path: Path) -> None:
    world = World()
    async with node(tmp_path, world) as (pods, bundles):
        with standing() as companion:
            pod_id = await pods.run_pod(pod_spec(front=FRONT))
            await made(pods, tmp_path, pod_id, "one", companion)
            async with bundles._turns.of(pod_id):
                deleting = asyncio.create_task(bundles.delete(questions.ToDelete(root="/r", id="one")))
                await asyncio.sleep(0)
                await bundles.start(questions.ToStart(root="/r", id="one"))
            with pytest.raises(FailedPrecondition, match="it is running"):
                await deleting
            assert bundles.state(questions.About(root="/r", id="one"))["status"] == "running"


async def test_a_vm_whose_daemon_ended_before_its_container_was_made_is_removed(tmp_path: Path) -> None:
    world = World()
    pods, _ = make_service(tmp_path, world)
    await pods.open()
    kept = await pods.run_pod(pod_spec(front=FRONT))
    await made(pods, tmp_path, kept, "one")
    await pods.run_pod(pod_spec("empty", front=FRONT))
    await pods.close()
    async with node(tmp_path, world):
        async with asyncio.timeout(30 * PATIENCE):
            while len(world.pods) > 1:  # noqa: ASYNC110 - nothing would set an event
                await asyncio.sleep(0.005)
        assert set(world.pods) == {kept}


async def test_of_two_starts_at_once_one_is_told_that_it_came_late(tmp_path: Path) -> None:
    world = World()
    async with node(tmp_path, world) as (pods, bundles):
        with standing() as companion:
            pod_id = await pods.run_pod(pod_spec(front=FRONT))
            await made(pods, tmp_path, pod_id, "one", companion)
            world.delays["start"] = 0.05
            asked = questions.ToStart(root="/r", id="one")
            told = await asyncio.gather(bundles.start(asked), bundles.start(asked), return_exceptions=True)
            assert told[0] is None
            assert isinstance(told[1], FailedPrecondition) and "in the running state" in str(told[1])


@pytest.mark.parametrize("oom", [True, False])
async def test_what_memory_ends_is_said_as_conmon_says_it(tmp_path: Path, oom: bool) -> None:
    world = World()
    async with node(tmp_path, world) as (pods, bundles):
        with standing() as companion:
            pod_id = await pods.run_pod(pod_spec(front=FRONT))
            await made(pods, tmp_path, pod_id, "one", companion)
            await bundles.start(questions.ToStart(root="/r", id="one"))
            (container,) = world.pods[pod_id].containers
            world.exit(container, 137, oom=oom)
            async with asyncio.timeout(60 * PATIENCE):
                while world.pods[pod_id].running:  # noqa: ASYNC110 - nothing would set an event
                    await asyncio.sleep(0.005)
        assert (tmp_path / "oom").exists() == oom
