"""A pod that takes too much of the host's disk: no more containers, and its end, with the reason."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from orlop.errors import ResourceExhausted
from orlop.sandbox.spec import ContainerSpec, PodSpec, Root, Sink
from orlop.sandbox.vm import diskbound
from tests.unit.vm_double import Host, driver_of, host_of

POD = PodSpec(id="p1", name="p", uid="u", namespace="n")


@pytest_asyncio.fixture
async def host(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    async with host_of(monkeypatch) as found:
        yield found


def container(name: str, log: Path) -> ContainerSpec:
    root = Root(layers=("/layer",))
    return ContainerSpec(id=name, pod_id="p1", name=name, root=root, args=("true",), sink=Sink(log=str(log)))


def test_what_files_take_is_counted_not_what_they_could(tmp_path: Path) -> None:
    layers, log = tmp_path / "layers", tmp_path / "log"
    assert diskbound.taken(layers, [str(log)]) == 0
    layers.mkdir()
    (layers / "a.img").write_bytes(bytes(range(256)) * 4096)
    (layers / "b.img").touch()
    os.truncate(layers / "b.img", 1 << 40)
    assert 1 << 20 <= diskbound.taken(layers, []) < 2 << 20
    log.write_bytes(b"x" * (1 << 20))
    assert 2 << 20 <= diskbound.taken(layers, [str(log)]) < 3 << 20


def test_no_bound() -> None:
    diskbound.check("p", 1 << 60, 0)
    with pytest.raises(ResourceExhausted, match=r"pod p takes 2 MiB .* vm\.pod_disk_mib \(1\)"):
        diskbound.check("p", 2 << 20, 1)


async def test_a_pod_that_takes_too_much_gets_no_container_and_ends(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diskbound, "_EVERY", 0.01)
    async with driver_of(host, pod_disk_mib=4) as driver:
        sandbox = await driver.run(POD)
        await sandbox.create(container("one", tmp_path / "log"))
        await asyncio.sleep(0.1)
        (machine,) = host.machines.values()
        assert not machine.ended.done(), "below its bound it stays"
        os.ftruncate(fd := os.open(sandbox._plugs.layers / "one.img", os.O_RDWR | os.O_CREAT), 0)
        os.write(fd, bytes(range(256)) * (5 << 12))
        os.close(fd)
        with pytest.raises(ResourceExhausted, match="pod_disk_mib"):
            await sandbox.create(container("two", tmp_path / "log"))
        async with asyncio.timeout(20):
            assert "more than vm.pod_disk_mib (4) allows" in await sandbox.wait()
            status = await sandbox.wait_container("one")
        assert (status.code, "vm.pod_disk_mib" in status.message) == (137, True)
        await driver.discard(POD.id)
        assert host.left == {}
