"""What containerd may say to the shim: to its command, to the keeper, and to the daemon."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import suppress

import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from orlop.bundle import document, translate
from orlop.bundle.roles import Role
from orlop.errors import FailedPrecondition, OrlopError
from orlop.linux.usage import Usage
from orlop.sandbox.spec import ExitStatus, Sink
from orlop.shim import places, placing, rootfs
from orlop.shim.api import task_v2_pb2 as pb
from orlop.shim.api import types_pb2
from orlop.shim.command import keeper, main, protobuf
from orlop.shim.model import Key, LiveTask, TaskProcess, TaskRecord, TaskStatus
from orlop.shim.rootfs import RootMount
from orlop.shim.service import services
from orlop.shim.stdio import Stdio
from orlop.ttrpc import server
from orlop.ttrpc.frames import FrameType, TtrpcFrame
from orlop.ttrpc.messages_pb2 import KeyValue, Request
from tests.fuzz.kit import logged, run, target
from tests.fuzz.targets.plugins import OneSidedLink

CONFIG = {
    "ociVersion": "1.2.0",
    "hostname": "inside",
    "process": {
        "cwd": "/",
        "args": ["sh", "-c", "true"],
        "env": ["A=1", "B"],
        "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
        "capabilities": {"bounding": ["CAP_CHOWN"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 18446744073709551615}],
    },
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [
        {"destination": "/proc", "type": "proc"},
        {"destination": "/m", "type": "bind", "source": "/x", "options": ["rbind", "ro", "rslave"]},
        {"destination": "/t", "type": "tmpfs", "options": ["size=64k", "mode=755"]},
    ],
    "annotations": {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": "abc",
        "io.kubernetes.cri.sandbox-memory": "1048576",
    },
    "linux": {
        "cgroupsPath": "kubepods-pod1.slice:cri-containerd:abc",
        "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
        + [{"type": "network", "path": "/var/run/netns/x"}],
        "resources": {"memory": {"limit": 1 << 20}, "cpu": {"quota": 5, "period": 100000}},
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
    },
}
OVERLAY = types_pb2.Mount(type="overlay", source="overlay", options=["lowerdir=/a:/b", "index=off"])
SERVICE = pb.DESCRIPTOR.services_by_name["Task"].full_name
CALLS: tuple[tuple[str, Message], ...] = (
    ("Create", pb.CreateTaskRequest(id="one", bundle="/b", rootfs=[OVERLAY], stdout="file:///tmp/log")),
    ("Exec", pb.ExecProcessRequest(id="one", exec_id="e", spec=AnyMessage(type_url="x", value=b"{}"))),
    ("Kill", pb.KillRequest(id="one", signal=9)),
    ("ResizePty", pb.ResizePtyRequest(id="one", width=80, height=25)),
    ("Wait", pb.WaitRequest(id="one")),
    ("State", pb.StateRequest(id="one")),
    ("Stats", pb.StatsRequest(id="one")),
    ("Delete", pb.DeleteRequest(id="one")),
)


def _request(number: int, method: str, payload: Message) -> bytes:
    asked = Request(service=SERVICE, method=method, payload=payload.SerializeToString())
    asked.metadata.append(KeyValue(key=places.NAMESPACE, value="k8s.io"))
    return TtrpcFrame(number, FrameType.REQUEST, asked.SerializeToString()).encode()


class _Tasks:
    """The verbs: they find what they get as it was promised, and mount and run nothing."""

    def __init__(self) -> None:
        self._first = TaskProcess(Stdio())
        self._task = LiveTask(TaskRecord(namespace="n", id="one", bundle="/b"), "p", "c", self._first)

    async def register(self, key: Key, events: str) -> None:
        assert all(key) and (not events or events.startswith("/"))

    async def create(
        self, key: Key, bundle: str, root: tuple[RootMount, ...], _stdio: Stdio, *, checkpoint: bool
    ) -> int:
        assert all(key) and bundle.startswith("/") and not checkpoint | (len(root) > 64)
        rootfs.check(root)
        return 1

    async def start(self, _key: Key, _exec_id: str) -> int:
        return 1

    async def exec(self, _key: Key, exec_id: str, data: bytes, _stdio: Stdio) -> None:
        assert exec_id
        document.process(data)

    async def kill(self, _key: Key, _exec_id: str, number: int) -> None:
        assert 1 <= number <= 64

    async def resize(self, _key: Key, _exec_id: str, columns: int, rows: int) -> None:
        assert 0 <= columns <= 1 << 16 and 0 <= rows <= 1 << 16

    async def update(self, _key: Key, resources: bytes) -> None:
        translate.resources(document.resources(resources))

    async def wait(self, _key: Key, _exec_id: str, *, again: bool) -> ExitStatus:
        return ExitStatus(code=again, finished_at=1)

    async def delete(self, _key: Key, _exec_id: str) -> tuple[ExitStatus, int]:
        return ExitStatus(code=1, finished_at=1), 1

    async def clear(self, _key: Key) -> tuple[ExitStatus, int]:
        return ExitStatus(code=1, finished_at=1), 1

    async def state(self, _key: Key, _exec_id: str) -> tuple[LiveTask, TaskProcess]:
        return self._task, self._first

    async def usage(self, _key: Key) -> Usage:
        return Usage()

    async def pause(self, _key: Key) -> None:
        pass

    resume = pause

    async def close_stdin(self, _key: Key, _exec_id: str) -> None:
        pass

    def pid(self, _task: LiveTask) -> int:
        return 1

    def standing(self, _task: LiveTask, process: TaskProcess) -> TaskStatus:
        return process.standing


EVERY = tuple(_request(2 * index + 1, *call) for index, call in enumerate(CALLS))


@target(seeds=[*EVERY, b"".join(EVERY)])
def shim_calls(data: bytes) -> None:
    """The daemon answers, or the connection ends."""

    async def talk() -> None:
        async with asyncio.timeout(10):
            await server.serve(OneSidedLink(data), services(_Tasks()))  # type: ignore[arg-type]

    with logged("orlop.ttrpc"):
        run(talk())


@target(OrlopError, seeds=[json.dumps(CONFIG).encode()])
def shim_bundle(data: bytes) -> None:
    """The config.json of a task becomes a VM or a container in one, or is refused with the task's name."""
    config = document.config(data)
    try:
        placing.check(config, "one")
    except FailedPrecondition as error:
        assert str(error).startswith("task one ")
        raise
    place, sandbox = placing.place(config)
    assert bool(sandbox) == (place is Role.MEMBER)
    spec = placing.pod(config, "n", "one", netns=placing.network(config))
    assert ".." not in spec.cgroup_parent.split("/")
    placing.namespaces(config, "one", [])
    made = translate.container(
        config, "one", "/b", pod_id="p", sink=Sink(), stdin=False, target="", annotations={}
    )
    msgspec.json.encode((spec, made.mounts))


PARAMS = b"".join(protobuf.text(n, one) for n, one in ((1, "one"), (2, "k8s.io"), (4, "2.3.4"), (5, "/e")))


@target(seeds=[PARAMS, PARAMS + protobuf.text(8, b"\x0a\xff\x80"), b"\x0a\x80", b"{}"])
def shim_bootstrap(data: bytes) -> None:
    """What containerd writes when it starts the command is understood, or taken for an older one's."""
    found = main.bootstrap(data)
    assert not found or {1, 4} <= found.keys() <= {1, 2, 4, 5}


@target(OSError, seeds=[*EVERY, b"".join(EVERY)])
def keeper_frames(data: bytes) -> None:
    """The keeper knows what is asked, passes it on, or hangs up; it never falls over."""
    here, there = socket.socketpair()
    pair = keeper.Pair(here, f"{os.devnull}/none", "tests")
    try:
        with suppress(BlockingIOError):
            there.setblocking(False)
            there.send(data[: 1 << 16])
        there.shutdown(socket.SHUT_WR)
        while True:
            pair.heard()
            assert len(pair.questions) <= keeper.MOST_PENDING
            assert not pair.connect()
            pair.impatient(float("inf"))
            pair.client.outgoing.clear()
    finally:
        pair.close()
        there.close()


NOTES = tuple(json.dumps({"verb": verb, "key": "k8s.io/a/in"}).encode() for verb in ("hold", "drop", "serve"))


@target(seeds=NOTES)
def keeper_notes(data: bytes) -> None:
    """A note of the daemon's is done, or is none."""
    verb, key = keeper.understood(data)
    holds = keeper.Holds()
    holds.take(verb, key, [])
    assert len(holds) <= 1
