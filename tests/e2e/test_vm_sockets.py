"""Sockets of the host in a VM's containers: real servers there, a real client here."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from orlop.sandbox.spec import ContainerSpec, ExecSpec, Mount, PodSpec, Security
from orlop.sandbox.vm.sandbox import VmSandbox
from tests.conformance import tools
from tests.e2e.vm_environment import (
    Environment,
    collected,
    container_spec,
    environment,
    execute,
    pod_spec,
    said,
    until,
)
from tests.patience import PATIENCE
from tests.volumes.kubelet import pod_directory

SLEEP = ("sleep", "100000")
MIB = 1 << 20


@pytest.fixture
async def env() -> AsyncIterator[Environment]:
    async with environment(pool=1) as one:
        yield one


class Server:
    """Sends back what it gets, after a line that says who its client is."""

    def __init__(self) -> None:
        self.clients: list[tuple[int, int]] = []
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        _, uid, gid = struct.unpack("=iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self.clients.append((uid, gid))
        self.open += 1
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving(path: Path, mode: int = 0o666) -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_unix_server(server.serve, path)
    path.chmod(mode)
    try:
        yield server
    finally:
        listening.close()
        path.unlink(missing_ok=True)


def caller() -> Path:
    return tools.compile_c(
        "caller", Path(__file__).parent.with_name("volumes").joinpath("caller.c").read_text()
    )


def mount(target: str, path: Path, **more: Any) -> Mount:
    return Mount(container_path=target, host_path=os.fspath(path), **more)


async def started(sandbox: VmSandbox, pod: PodSpec, *mounts: Mount, **more: Any) -> ContainerSpec:
    spec = container_spec(pod, *SLEEP, mounts=(mount("/caller", caller(), read_only=True), *mounts), **more)
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    return spec


async def called(sandbox: VmSandbox, spec: ContainerSpec, path: str, said: bytes = b"hello") -> bytes:
    """What comes back of what is said."""
    script = f"head -c {len(said)} | /caller connect {path}"
    running = await sandbox.exec(spec.id, ExecSpec(args=("sh", "-c", script), stdin=True))

    async def say() -> None:
        await running.write(said)
        await running.close_stdin()

    async with asyncio.timeout(60 * PATIENCE):
        _, (out, err, _code) = await asyncio.gather(say(), collected(running))
    assert not err, err
    return out


async def test_a_container_connects_to_a_socket_of_the_host(env: Environment) -> None:
    pod, place = pod_spec(), env.scratch / "run"
    place.mkdir()
    (env.scratch / "link").symlink_to(place)
    async with serving(place / "it.sock") as server, serving(place / "other.sock", 0o600):
        sandbox = await env.run(pod)
        main = await started(
            sandbox,
            pod,
            mount("/run/it.sock", env.scratch / "link/it.sock"),
            mount("/host", place, read_only=True),
        )
        user = await started(
            sandbox,
            pod,
            mount("/run/it.sock", place / "it.sock"),
            mount("/run/other.sock", place / "other.sock"),
            security=Security(user="1000", group="2000"),
        )
        assert await called(sandbox, main, "/run/it.sock") == b"hello"
        assert await called(sandbox, main, "/host/other.sock") == b"hello"
        # Who is there is who connects, and may do no more than that.
        assert await called(sandbox, user, "/run/it.sock") == b"hello"
        assert server.clients == [(0, 0), (1000, 2000)]
        assert await called(sandbox, user, "/run/other.sock") == b"connect: Permission denied\n"
        # Much, both ways at once.
        much = os.urandom(3 * MIB)
        assert await called(sandbox, main, "/run/it.sock", much) == much
        await until(lambda: server.open == 0)
        # More than are served at a time wait for their turn, and are not refused.
        out, _, _ = await execute(sandbox, main.id, "/caller", "many", "/run/it.sock", "100")
        assert out == b"all\n"
        await until(lambda: server.open == 0)
        # A daemon that comes later serves them as well.
        await env.crash()
        await env.again()
        sandbox = await env.recover(pod, main, user)
        assert await called(sandbox, main, "/run/it.sock") == b"hello"
        await sandbox.signal(user.id, signal.SIGKILL)
        await sandbox.delete(user.id)
        assert await called(sandbox, main, "/host/it.sock") == b"hello"
    # Nobody listens any more: an end, and the container goes on.
    assert b"hello" not in await called(sandbox, main, "/run/it.sock")
    # A server that comes again at the same place is served again.
    async with serving(place / "it.sock"):
        assert await called(sandbox, main, "/run/it.sock") == b"hello"


async def test_a_link_in_a_volume_leads_to_no_other_socket(env: Environment) -> None:
    """A container that may write to the directory puts a link in the socket's place."""
    pod, place, secret = pod_spec(), env.scratch / "volume", env.scratch / "secret"
    place.mkdir()
    secret.mkdir()
    async with serving(secret / "it.sock") as forbidden, serving(place / "it.sock"):
        sandbox = await env.run(pod)
        main = await started(sandbox, pod, mount("/volume", place))
        assert await called(sandbox, main, "/volume/it.sock") == b"hello"
        (place / "it.sock").unlink()
        (place / "it.sock").symlink_to(secret / "it.sock")
        assert b"hello" not in await called(sandbox, main, "/volume/it.sock")
        assert not forbidden.clients
        place.rename(env.scratch / "aside")
        place.symlink_to(secret)
        assert b"hello" not in await called(sandbox, main, "/volume/it.sock")
        assert not forbidden.clients


async def test_sockets_below_the_top_of_a_drivers_volume(env: Environment, tmp_path: Path) -> None:
    """As drivers do it that give a pod the socket of an agent: the agent's directory within a tmpfs."""
    pod = pod_spec()
    with pod_directory(tmp_path / "kubelet", pod.uid) as directory:
        (tmp_path / "agent").mkdir()
        agent = directory.in_memory(tmp_path / "agent")
        volume = directory.in_memory(directory.csi("agent"), 8192)
        directory.show(agent, volume / "nodeagent")
        async with serving(agent / "socket") as server:
            sandbox = await env.run(pod)
            user = Security(user="1000", group="2000")
            main = await started(
                sandbox, pod, mount("/agent", volume), mount("/fixed", volume, read_only=True), security=user
            )
            for path in ("/agent/nodeagent/socket", "/fixed/nodeagent/socket"):
                assert await called(sandbox, main, path) == b"hello"
            assert server.clients == [(1000, 2000)] * 2


async def reached(sandbox: VmSandbox, spec: ContainerSpec, path: str, *, by: Server) -> None:
    """Wait until the container gets through to that server."""
    before = len(by.clients)
    async with asyncio.timeout(60 * PATIENCE):
        while await called(sandbox, spec, path) != b"hello" or len(by.clients) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def gone(sandbox: VmSandbox, spec: ContainerSpec, path: str) -> None:
    """Wait until the container sees no such file."""
    async with asyncio.timeout(60 * PATIENCE):
        while await said(sandbox, spec, f"test -e {path} && echo there || echo gone") != "gone":  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_sockets_that_come_go_and_come_again(env: Environment) -> None:
    """Servers that start after the container does, end, and start again; and a daemon that does so."""
    pod, place = pod_spec(), env.scratch / "run"
    place.mkdir()
    for number in range(3):  # what is no socket is nobody's business
        (place / f"file-{number}").touch()
    sandbox = await env.run(pod)
    main = await started(sandbox, pod, mount("/host", place))
    user = await started(
        sandbox,
        pod,
        mount("/fixed", place, read_only=True),
        security=Security(user="1000", group="2000"),
    )
    async with serving(place / "late.sock") as server, serving(place / "closed.sock", 0o600):
        await reached(sandbox, main, "/host/late.sock", by=server)
        await reached(sandbox, user, "/fixed/late.sock", by=server)
        assert server.clients[0] == (0, 0) and server.clients[-1] == (1000, 2000)
        async with asyncio.timeout(60 * PATIENCE):
            while await called(sandbox, user, "/fixed/closed.sock") != b"connect: Permission denied\n":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    await gone(sandbox, main, "/host/late.sock")
    assert "file-1" in await said(sandbox, main, "ls /host")
    # A server that starts again, and one that puts its socket there by a rename, as careful ones do.
    async with serving(place / "late.sock") as server, serving(place / "aside") as other:
        (place / "aside").rename(place / "renamed.sock")
        await reached(sandbox, main, "/host/late.sock", by=server)
        await reached(sandbox, user, "/fixed/renamed.sock", by=other)
        (place / "renamed.sock").unlink()
        await gone(sandbox, user, "/fixed/renamed.sock")
        # A link is not followed, wherever it leads.
        (place / "link.sock").symlink_to(place / "late.sock")
        (env.scratch / "secret").mkdir()
        # What comes and goes while no daemon is there is known to the next one.
        await env.crash()
    async with serving(place / "between.sock") as server:
        await env.again()
        sandbox = await env.recover(pod, main, user)
        await reached(sandbox, main, "/host/between.sock", by=server)
        await gone(sandbox, user, "/fixed/late.sock")
        async with serving(place / "late.sock") as again:
            await reached(sandbox, user, "/fixed/late.sock", by=again)
        # A container that is gone leaves nothing behind that would keep the share or another container.
        await sandbox.signal(user.id, signal.SIGKILL)
        await sandbox.delete(user.id)
        async with serving(place / "late.sock") as again:
            await reached(sandbox, main, "/host/late.sock", by=again)
        third = await started(sandbox, pod, mount("/host", place))
        assert await called(sandbox, third, "/host/between.sock") == b"hello"


async def test_a_driver_that_makes_its_socket_later(env: Environment, tmp_path: Path) -> None:
    """In a directory of an agent's within the driver's tmpfs."""
    pod = pod_spec()
    with pod_directory(tmp_path / "kubelet", pod.uid) as directory:
        (tmp_path / "agent").mkdir()
        agent = directory.in_memory(tmp_path / "agent")
        volume = directory.in_memory(directory.csi("agent"), 8192)
        directory.show(agent, volume / "nodeagent")
        sandbox = await env.run(pod)
        main = await started(sandbox, pod, mount("/agent", volume, read_only=True))
        for _ in range(2):
            async with serving(agent / "socket") as server:
                await reached(sandbox, main, "/agent/nodeagent/socket", by=server)
            await gone(sandbox, main, "/agent/nodeagent/socket")
