"""Named volumes in two clients' hands at one moment: one uses a volume, the other removes it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import orlop
from orlop.client import again, session, volumes
from orlop.client.calls import VolumeClient
from orlop.errors import FailedPrecondition, NotFound
from tests.node import BUSYBOX, Node
from tests.patience import PATIENCE

SOON = 1.0
"""Seconds in which a call that does not wait for its turn is through. One that waits makes this a pause."""
DEADLINE = 60 * PATIENCE

pytestmark = pytest.mark.usefixtures("client_node")


@contextlib.asynccontextmanager
async def one_volume() -> AsyncIterator[tuple[VolumeClient, str]]:
    """A volume that is gone at the end, if nothing else has removed it."""
    name = f"contested-{secrets.token_hex(4)}"
    async with volumes.connect() as client:
        await volumes.create(client, name, 16 << 20, vm=False)
        try:
            yield client, name
        finally:
            with contextlib.suppress(NotFound):
                await removed(client, name)


async def removed(client: VolumeClient, name: str) -> None:
    """Remove a volume whose pods have ended: its device goes a moment after them."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await volumes.remove(client, name)
            except FailedPrecondition:
                await asyncio.sleep(0.1)


def interrupted(call: Callable[..., Awaitable[Any]], begin: Callable[[], asyncio.Task[Any]]) -> Any:
    """The call, before which another one is begun and given time to do its harm."""

    async def late(*args: Any, **options: Any) -> Any:
        await asyncio.wait({begin()}, timeout=SOON)
        return await call(*args, **options)

    return late


@pytest.mark.parametrize("again_too", [False, True], ids=["run", "restart"])
async def test_what_a_container_is_about_to_have_is_not_removed(
    again_too: bool, client_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing: list[asyncio.Task[None]] = []
    async with one_volume() as (client, name), session.connect() as cri:

        def remove() -> asyncio.Task[None]:
            removing.append(asyncio.ensure_future(volumes.remove(client, name)))
            return removing[-1]

        async with orlop.connect() as node, node.pod(handler="process") as pod:
            if again_too:
                first = await pod.start(BUSYBOX, "sleep", "1000", volumes=[f"{name}:/data"])
                create = interrupted(cri.runtime.create_container, remove)
                monkeypatch.setattr(cri.runtime, "create_container", create, raising=False)
                running, _ = await again.run_again(cri, first.id, 0.0)
            else:
                runtime = pod._client.runtime
                create = interrupted(runtime.create_container, remove)
                monkeypatch.setattr(runtime, "create_container", create, raising=False)
                running = (await pod.start(BUSYBOX, "sleep", "1000", volumes=[f"{name}:/data"])).id
            with pytest.raises(FailedPrecondition, match="in use"):
                await removing[0]
            kinds = client_node.crictl("exec", running, "stat", "-f", "-c", "%T", "/data").out
            assert kinds.strip() == "ext2/ext3", "it has the volume, and no directory of the host"
        await removed(client, name)


async def test_who_comes_while_a_volume_is_removed_hears_that_there_is_none(
    client_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting: list[asyncio.Task[orlop.Container]] = []
    async with one_volume() as (client, name), orlop.connect() as node, node.pod(handler="process") as pod:

        def start() -> asyncio.Task[orlop.Container]:
            work = pod.start(BUSYBOX, "sleep", "1000", volumes=[f"{name}:/data"])
            starting.append(asyncio.ensure_future(work))
            return starting[-1]

        delete = interrupted(client.controller.delete_volume, start)
        monkeypatch.setattr(client.controller, "delete_volume", delete, raising=False)
        await volumes.remove(client, name)
        with pytest.raises(NotFound, match=name):
            await starting[0]
        place = Path(client_node.socket).parent / "volumes" / name
        assert not place.exists(), "nothing of it is left where mounts name it"
