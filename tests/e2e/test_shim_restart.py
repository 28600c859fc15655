"""A daemon that is killed, or a VM that ends, between two calls of containerd's, which this is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.errors import FailedPrecondition, NotFound
from orlop.oci.command import templates
from orlop.shim.api import events_pb2, forward_pb2
from orlop.shim.api import task_v2_pb2 as pb
from orlop.ttrpc import link
from orlop.ttrpc.client import Client
from orlop.ttrpc.server import Services, serve
from tests.conformance import tools
from tests.e2e.outside import root_directory
from tests.node import Node
from tests.patience import PATIENCE

NAMESPACE = "shim-restart"
LIMIT = 180 * PATIENCE


class Containerd:
    """What containerd does of a shim's: starts the command, calls its address, and hears of events."""

    def __init__(self, node: Node, place: Path) -> None:
        self.node = node
        self.place = place
        self.ends: list[tuple[str, int]] = []
        self.client: Client | None = None
        root_directory(place / "rootfs", tools.busybox())

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        services = Services()
        service = forward_pb2.DESCRIPTOR.services_by_name["Events"]
        services.add(service, {"Forward": self._forward})

        async def answer(connection: link.SocketLink) -> None:
            await serve(connection, services)

        listener = link.Listener(self.place / "events.sock", answer)
        await listener.start()
        try:
            yield
        finally:
            if self.client is not None:
                await self.client.close()
            await listener.stop()

    async def _forward(self, request: forward_pb2.ForwardRequest) -> Empty:
        if request.envelope.topic == "/tasks/exit":
            said = events_pb2.TaskExit.FromString(request.envelope.event.value)
            self.ends.append((said.container_id, said.exit_status))
        return Empty()

    async def _command(self, name: str, action: str) -> str:
        argv = [sys.executable, "-m", "orlop.shim.command.main", "-namespace", NAMESPACE, "-id", name, action]
        env = {
            **os.environ,
            "ORLOP_STATE": f"{self.node.scratch}/state",
            "TTRPC_ADDRESS": f"{self.place}/events.sock",
        }
        done = await asyncio.to_thread(
            subprocess.run,
            argv,
            cwd=self.place / name,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT,
            check=True,
        )
        return done.stdout.decode(errors="replace")

    async def begin(self, name: str, *args: str, **more: object) -> None:
        """Make a bundle, and have the shim expect its task."""
        config = json.loads(json.dumps(templates.CONFIG)) | more
        config["process"] |= {"args": list(args), "terminal": False}
        config["root"] = {"path": "../rootfs"}
        (self.place / name).mkdir()
        (self.place / name / "config.json").write_text(json.dumps(config))
        address = await self._command(name, "start")
        self.client = Client(await link.connect(Path(address.removeprefix("unix://"))), "the shim")

    async def give_up(self, name: str) -> None:
        """Be rid of a task, whatever there is of it."""
        await self._command(name, "delete")

    async def call(self, method: str, request: Message, reply: type[Message]) -> Message:
        assert self.client is not None
        return await self.client.call("containerd.task.v2.Task", method, request, reply, timeout=LIMIT)

    async def create(self, name: str) -> None:
        request = pb.CreateTaskRequest(id=name, bundle=str(self.place / name))
        await self.call("Create", request, pb.CreateTaskResponse)

    async def restart(self) -> None:
        """Kill the daemon, and start it again."""
        await asyncio.to_thread(self.node.kill)
        await asyncio.to_thread(self.node.start)
        await asyncio.to_thread(self.node.wait_ready)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT):
            while not true():  # noqa: ASYNC110 - nothing sets an event
                await asyncio.sleep(0.05)


@pytest.fixture
async def containerd(shared_node: Node, tmp_path: Path) -> AsyncIterator[Containerd]:
    one = Containerd(shared_node, tmp_path)
    async with one.listening():
        yield one


async def test_the_end_of_a_task_that_an_earlier_daemon_was_told_of_is_heard(containerd: Containerd) -> None:
    await containerd.begin("one", "sh", "-c", "exit 7")
    await containerd.restart()
    await containerd.create("one")
    await containerd.call("Start", pb.StartRequest(id="one"), pb.StartResponse)
    await containerd.until(lambda: containerd.ends)
    assert containerd.ends == [("one", 7)]
    status = await containerd.call("Delete", pb.DeleteRequest(id="one"), pb.DeleteResponse)
    assert isinstance(status, pb.DeleteResponse) and status.exit_status == 7
    await containerd.give_up("one")


async def test_a_sandbox_whose_vm_ends_before_its_start_is_told_and_leaves_nothing(
    containerd: Containerd,
) -> None:
    sandbox = {"annotations": {"io.kubernetes.cri.container-type": "sandbox"}}
    await containerd.begin("pod", "pause", **sandbox)
    await containerd.create("pod")
    found = await containerd.call("Connect", pb.ConnectRequest(id="pod"), pb.ConnectResponse)
    assert isinstance(found, pb.ConnectResponse)
    os.kill(found.task_pid, signal.SIGKILL)
    await containerd.until(lambda: containerd.ends)
    assert [name for name, _ in containerd.ends] == ["pod"]
    with pytest.raises(FailedPrecondition, match="it is stopped"):
        await containerd.call("Start", pb.StartRequest(id="pod"), pb.StartResponse)
    await containerd.give_up("pod")
    with pytest.raises(NotFound):
        await containerd.call("State", pb.StateRequest(id="pod"), pb.StateResponse)
