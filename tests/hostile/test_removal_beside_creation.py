"""Removing a pod beside the creation of a container in it: volumes of the host must keep their files."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.config import ProcessConfig
from orlop.errors import OrlopError
from orlop.sandbox.spec import ContainerSpec, IdMapping, Mount, NamespaceMode, Namespaces, PodSpec
from tests.e2e.process_pods import Bed, bed, make_layer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROUNDS = 25
VOLUMES = 20
FILES = 50
MAPPING = (IdMapping(container_id=0, host_id=300000, length=65536),)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Bed]:
    layer = make_layer(tmp_path)
    for directory in [tmp_path, *tmp_path.parents][:3]:
        directory.chmod(0o711)  # the container's root must get through
    async with bed(tmp_path, layer, process=ProcessConfig(runtime="runc")) as found:
        yield found


def _volumes(place: Path) -> list[Path]:
    found = []
    for number in range(VOLUMES):
        volume = place / str(number)
        volume.mkdir(parents=True)
        for name in range(FILES):
            (volume / str(name)).write_text("kept")
        found.append(volume)
    return found


def _request(host: Bed, volumes: list[Path]) -> tuple[PodSpec, ContainerSpec]:
    namespaces = Namespaces(user=NamespaceMode.POD, uid_mappings=MAPPING, gid_mappings=MAPPING)
    pod = host.pod(namespaces=namespaces)
    mounts = tuple(
        Mount(container_path=f"/v{i}", host_path=str(volume), uid_mappings=MAPPING, gid_mappings=MAPPING)
        for i, volume in enumerate(volumes)
    )
    return pod, host.container(pod, mounts=mounts)


@pytest.mark.parametrize("how", ["delete", "discard"])
async def test_volumes_keep_their_files(host: Bed, tmp_path: Path, how: str) -> None:
    volumes = _volumes(tmp_path / "volumes")
    order = random.Random(11)
    for _ in range(ROUNDS):
        pod, spec = _request(host, volumes)
        sandbox = await host.driver.run(pod)
        making = asyncio.ensure_future(sandbox.create(spec))
        await asyncio.sleep(order.uniform(0.005, 0.12))
        if how == "delete":
            await sandbox.delete(spec.id)
        await host.driver.discard(pod.id)
        outcome = (await asyncio.gather(making, return_exceptions=True))[0]
        assert not isinstance(outcome, BaseException) or isinstance(outcome, OrlopError), outcome
        for volume in volumes:
            assert len(list(volume.iterdir())) == FILES, f"files of {volume} are gone"
        await host.driver.discard(pod.id)
    assert await host.driver.traces() == []
