"""Sockets that containers of a VM bind for the host, in a directory like a kubelet's for its plug-ins."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.config import VolumeConfig
from orlop.sandbox.spec import ContainerSpec, PodSpec
from orlop.sandbox.vm.listeners import is_served
from orlop.sandbox.vm.sandbox import VmSandbox
from tests.e2e.test_vm_sockets import called, caller, gone, mount, reached, serving, started
from tests.e2e.vm_environment import Environment, container_spec, environment, pod_spec, said, until
from tests.patience import PATIENCE

MIB = 1 << 20


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    path = tmp_path / "plugins"
    path.mkdir()
    return path


@pytest.fixture
async def env(plugins: Path) -> AsyncIterator[Environment]:
    async with environment(pool=1, volumes=VolumeConfig(sockets=(os.fspath(plugins),))) as one:
        yield one


async def driver(
    sandbox: VmSandbox, pod: PodSpec, place: Path, mode: str = "600", name: str = "csi.sock"
) -> ContainerSpec:
    """A container that serves a socket below ``/csi``."""
    spec = container_spec(
        pod,
        *("/caller", "serve", f"/csi/{name}", mode),
        mounts=(mount("/caller", caller(), read_only=True), mount("/csi", place)),
    )
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    return spec


def mode_of(path: Path) -> int:
    """A file's mode; one may just be made anew."""
    try:
        return stat.S_IMODE(path.lstat().st_mode)
    except FileNotFoundError:
        return 0


async def talk(path: Path, said: bytes) -> bytes:
    """What a server on the host says to that."""
    async with asyncio.timeout(60 * PATIENCE):
        reader, writer = await asyncio.open_unix_connection(path)

        async def say() -> None:
            writer.write(said)
            await writer.drain()
            writer.write_eof()

        try:
            answer, _ = await asyncio.gather(reader.read(), say())
        finally:
            writer.close()
        return answer


async def test_the_host_connects_to_a_socket_of_a_container(env: Environment, plugins: Path) -> None:
    place, pod = plugins / "csi.example", pod_spec()
    place.mkdir(mode=0o750)
    (env.scratch / "link").symlink_to(place)
    path = place / "csi.sock"
    async with serving(place / "kubelet.sock"):
        sandbox = await env.run(pod)
        main = await driver(sandbox, pod, env.scratch / "link", "640")
        await until(lambda: path.exists() and is_served(os.fspath(path)), 60)
        await until(lambda: mode_of(path) == 0o640, 60)
        assert await talk(path, b"hello") == b"hello"
        much = os.urandom(3 * MIB)
        answers = await asyncio.gather(talk(path, much), *(talk(path, b"%d" % n) for n in range(40)))
        assert answers == [much, *(b"%d" % n for n in range(40))]
        # Beside it a container of the same pod connects by itself, and to what the host has there.
        side = await started(sandbox, pod, mount("/csi", place))
        assert await called(sandbox, side, "/csi/csi.sock") == b"hello"
        assert await called(sandbox, side, "/csi/kubelet.sock") == b"hello"
        # A pod in another VM gets there by the host's.
        other_pod = pod_spec()
        other = await env.run(other_pod)
        client = await started(other, other_pod, mount("/csi.sock", path))
        assert await called(other, client, "/csi.sock") == b"hello"
        await env.driver.discard(other_pod.id)
        # It is served again by a daemon that comes later, and what has gone meanwhile is gone.
        await said(sandbox, side, "/caller serve /csi/second.sock 666 >/dev/null 2>&1 &")
        await until((place / "second.sock").exists, 60)
        await env.crash()
        assert not is_served(os.fspath(path)) and path.exists()
        await env.again()
        sandbox = await env.recover(pod, main, side)
        await until(lambda: is_served(os.fspath(path)), 60)
        assert await talk(path, b"again") == b"again"
        await said(sandbox, side, "rm /csi/second.sock")
        await until(lambda: not (place / "second.sock").exists(), 60)
        # The container starts anew, as a driver does that has left its socket behind.
        await sandbox.signal(main.id, signal.SIGKILL)
        await sandbox.delete(main.id)
        main = await driver(sandbox, pod, place)
        await until(lambda: mode_of(path) == 0o600 and is_served(os.fspath(path)), 60)
        assert await talk(path, b"anew") == b"anew"
        await env.driver.discard(pod.id)
        assert [one.name for one in place.iterdir()] == ["kubelet.sock"]


async def test_what_has_the_name_on_the_host_stays(env: Environment, plugins: Path) -> None:
    place, pod = plugins / "csi.example", pod_spec()
    place.mkdir()
    path, left = place / "csi.sock", place / "left.sock"
    path.write_text("a file")
    with socket.socket(socket.AF_UNIX) as link:
        link.bind(os.fspath(left))
    sandbox = await env.run(pod)
    main = await driver(sandbox, pod, place)
    async with serving(place / "served.sock") as server:
        side = await started(sandbox, pod, mount("/csi", place))
        # What a server of the host has is its own; a container that wants the name has it for its pod.
        await reached(sandbox, side, "/csi/served.sock", by=server)
        await said(sandbox, side, "/caller serve /csi/served.sock 666 >/dev/null 2>&1 &")

        async def is_its_own() -> bool:
            before = len(server.clients)
            return (
                await called(sandbox, side, "/csi/served.sock") == b"hello" and len(server.clients) == before
            )

        async with asyncio.timeout(60 * PATIENCE):
            while not await is_its_own():  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert await talk(place / "served.sock", b"mine") == b"mine"
        # What a server has left is nobody's.
        await driver(sandbox, pod, place, name="left.sock")
        await until(lambda: is_served(os.fspath(left)), 60)
        assert await talk(left, b"hello") == b"hello"
        # For its own pod it is there all the same.
        async with asyncio.timeout(60 * PATIENCE):
            while await called(sandbox, side, "/csi/csi.sock") != b"hello":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert path.read_text() == "a file"
    # A daemon that is killed, and a pod that ends before it is known again, leave nothing.
    await env.crash()
    assert left.exists() and main
    await env.again()
    await env.driver.discard(pod.id)
    assert [one.name for one in place.iterdir()] == ["csi.sock"]


async def test_a_plug_in_hears_of_a_kubelet_that_starts_again(env: Environment, plugins: Path) -> None:
    """It waits for the kubelet's socket to be made anew, connects to it, and makes its own anew."""
    pod = pod_spec()
    kubelet = plugins / "kubelet.sock"
    sandbox = await env.run(pod)
    main = await driver(sandbox, pod, plugins, name="plug-in.sock")
    side = await started(sandbox, pod, mount("/csi", plugins))
    await said(sandbox, side, "/caller watch /csi kubelet.sock >/tmp/heard 2>&1 &")
    await heard(sandbox, side, ["watching"])
    async with serving(kubelet) as server:
        await heard(sandbox, side, ["watching", "came"])
        await reached(sandbox, side, "/csi/kubelet.sock", by=server)
        await until(lambda: is_served(os.fspath(plugins / "plug-in.sock")), 60)
        assert await talk(plugins / "plug-in.sock", b"hello") == b"hello"
    await gone(sandbox, side, "/csi/kubelet.sock")
    # Anew under the same name, so soon that nobody sees that it was away.
    async with serving(kubelet) as server:
        await heard(sandbox, side, ["watching", "came", "came"])
        await reached(sandbox, side, "/csi/kubelet.sock", by=server)
        kubelet.unlink()
        async with serving(kubelet) as again:
            await heard(sandbox, side, ["watching", "came", "came", "came"])
            await reached(sandbox, side, "/csi/kubelet.sock", by=again)
            # A daemon that comes later goes on with that, and makes none of them anew.
            await env.crash()
            await env.again()
            sandbox = await env.recover(pod, main, side)
            await until(lambda: is_served(os.fspath(plugins / "plug-in.sock")), 60)
            assert await talk(plugins / "plug-in.sock", b"again") == b"again"
            await reached(sandbox, side, "/csi/kubelet.sock", by=again)
            await heard(sandbox, side, ["watching", "came", "came", "came"])
            # The plug-in starts again, and is found where it was.
            await sandbox.signal(main.id, signal.SIGKILL)
            await sandbox.delete(main.id)
            await driver(sandbox, pod, plugins, name="plug-in.sock")
            await until(lambda: is_served(os.fspath(plugins / "plug-in.sock")), 60)
            assert await talk(plugins / "plug-in.sock", b"anew") == b"anew"
            await env.driver.discard(pod.id)
            assert [one.name for one in plugins.iterdir()] == ["kubelet.sock"]


async def heard(sandbox: VmSandbox, spec: ContainerSpec, words: list[str]) -> None:
    """Wait until the one that watches has said that, and no more."""
    found: list[str] = []
    async with asyncio.timeout(60 * PATIENCE):
        while len(found) < len(words):
            found = (await said(sandbox, spec, "cat /tmp/heard")).splitlines()
            await asyncio.sleep(0.1)
    assert found == words
