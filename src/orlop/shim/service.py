"""containerd's calls as they come in: checked, and handed to :mod:`orlop.shim.tasks`.

Version 2 and 3 of the task service have the same calls and messages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop import tracing
from orlop.errors import InvalidArgument, Unimplemented
from orlop.host import threads
from orlop.sandbox.spec import ExitStatus
from orlop.shim import asked, places, stdio
from orlop.shim.api import door_pb2, process_pb2, sandbox_pb2, task_v3_pb2
from orlop.shim.api import task_v2_pb2 as pb
from orlop.shim.metrics import metrics
from orlop.shim.model import Key
from orlop.shim.rootfs import RootMount
from orlop.shim.sandbox_service import SandboxCalls
from orlop.shim.sandboxes import Sandboxes
from orlop.shim.tasks import ShimTasks
from orlop.ttrpc.server import METADATA, Method, Services

_MOST_MOUNTS = 64
_LAST_SIGNAL = 64
_MOST_CELLS = 1 << 16
_PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


def services(tasks: ShimTasks) -> Services:
    """All that containerd and the command may call."""
    found = Services()
    calls = TaskCalls(tasks)
    for file in (pb, task_v3_pb2):
        service = file.DESCRIPTOR.services_by_name["Task"]
        found.add(service, _methods(calls, [method.name for method in service.methods]))
    sandbox = sandbox_pb2.DESCRIPTOR.services_by_name["Sandbox"]
    sandboxes = SandboxCalls(Sandboxes(tasks))
    found.add(sandbox, _methods(sandboxes, [method.name for method in sandbox.methods]))
    door = door_pb2.DESCRIPTOR.services_by_name["Door"]
    found.add(door, _methods(DoorCalls(tasks), [method.name for method in door.methods]))
    return found


def _methods(calls: object, names: list[str]) -> Mapping[str, Method]:
    ours = {name: getattr(calls, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) for name in names}
    return {name: _traced(name, call) for name, call in ours.items()}


def _traced(name: str, call: Callable[[Any], Awaitable[Message]]) -> Method:
    async def traced(request: Any) -> Message:
        with tracing.span(f"shim.{name}"):
            return await call(request)

    return traced


class DoorCalls:
    """What the command asks."""

    def __init__(self, tasks: ShimTasks) -> None:
        self._tasks = tasks

    async def register(self, request: door_pb2.RegisterRequest) -> Empty:
        """A task will come."""
        events = request.events.removeprefix("unix://")
        if events and not asked.is_path(events):
            raise InvalidArgument(f"{request.events[:200]!r} is not the address of a containerd")
        await self._tasks.register(asked.key(request.namespace, request.id), events)
        return Empty()

    async def clear(self, request: door_pb2.ClearRequest) -> pb.DeleteResponse:
        """A task is to go."""
        status, pid = await self._tasks.clear(asked.key(request.namespace, request.id))
        return _deleted(status, pid)


class TaskCalls:
    """What containerd asks: the methods of the service ``Task``."""

    def __init__(self, tasks: ShimTasks) -> None:
        self._tasks = tasks

    async def create(self, request: pb.CreateTaskRequest) -> pb.CreateTaskResponse:
        """Make a task."""
        bundle = asked.bundle(request.bundle)
        if len(request.rootfs) > _MOST_MOUNTS:
            raise InvalidArgument(f"a root file system of {len(request.rootfs)} mounts")
        pid = await self._tasks.create(
            _of(request),
            bundle,
            tuple(
                RootMount(kind=one.type, source=one.source, options=tuple(one.options))
                for one in request.rootfs
            ),
            await _stdio(request),
            checkpoint=bool(request.checkpoint),
        )
        return pb.CreateTaskResponse(pid=pid)

    async def start(self, request: pb.StartRequest) -> pb.StartResponse:
        """Run it."""
        return pb.StartResponse(pid=await self._tasks.start(_of(request), _exec(request)))

    async def delete(self, request: pb.DeleteRequest) -> pb.DeleteResponse:
        """Remove it."""
        return _deleted(*await self._tasks.delete(_of(request), _exec(request)))

    async def exec(self, request: pb.ExecProcessRequest) -> Empty:
        """Make one more process."""
        if not request.exec_id:
            raise InvalidArgument("a process without an id")
        data = _document(request.spec, _PROCESS)
        await self._tasks.exec(_of(request), _exec(request), data, await _stdio(request))
        return Empty()

    async def kill(self, request: pb.KillRequest) -> Empty:
        """Send a signal."""
        # 0 is none, either: with it CRI-O asks whether it can open a log again, which it then does not. So a
        # kubelet hears of a failure, and leaves the log where it is and is written on.
        if not 1 <= request.signal <= _LAST_SIGNAL:
            raise InvalidArgument(f"there is no signal {request.signal}")
        await self._tasks.kill(_of(request), _exec(request), request.signal)
        return Empty()

    async def wait(self, request: pb.WaitRequest) -> pb.WaitResponse:
        """Wait for an end."""
        again = places.AGAIN in METADATA.get()
        status = await self._tasks.wait(_of(request), _exec(request), again=again)
        found = pb.WaitResponse(exit_status=status.code)
        found.exited_at.FromNanoseconds(status.finished_at)
        return found

    async def state(self, request: pb.StateRequest) -> pb.StateResponse:
        """How it stands."""
        task, process = await self._tasks.state(_of(request), _exec(request))
        streams = process.stdio
        stdout, stderr = streams.named
        found = pb.StateResponse(
            id=task.record.id,
            bundle=task.record.bundle,
            pid=self._tasks.pid(task),
            status=process_pb2.Status.ValueType(int(self._tasks.standing(task, process))),
            stdin=streams.stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=streams.terminal,
            exec_id=process.exec_id,
        )
        if process.exit is not None:
            found.exit_status = process.exit.code
            found.exited_at.FromNanoseconds(process.exit.finished_at)
        return found

    async def pids(self, request: pb.PidsRequest) -> pb.PidsResponse:
        """Its processes on this host: the VM's."""
        task, _ = await self._tasks.state(_of(request), "")
        return pb.PidsResponse(processes=[process_pb2.ProcessInfo(pid=self._tasks.pid(task))])

    async def connect(self, request: pb.ConnectRequest) -> pb.ConnectResponse:
        """Who serves it, and where it runs."""
        task, _ = await self._tasks.state(_of(request), "")
        return pb.ConnectResponse(shim_pid=os.getpid(), task_pid=self._tasks.pid(task))

    async def stats(self, request: pb.StatsRequest) -> pb.StatsResponse:
        """What it uses."""
        return pb.StatsResponse(stats=metrics(await self._tasks.usage(_of(request))))

    async def update(self, request: pb.UpdateTaskRequest) -> Empty:
        """Change its limits."""
        await self._tasks.update(_of(request), _document(request.resources, _RESOURCES))
        return Empty()

    async def resize_pty(self, request: pb.ResizePtyRequest) -> Empty:
        """Set the size of its terminal."""
        if request.width > _MOST_CELLS or request.height > _MOST_CELLS:
            raise InvalidArgument(f"a terminal of {request.width} by {request.height}")
        await self._tasks.resize(_of(request), _exec(request), request.width, request.height)
        return Empty()

    async def close_io(self, request: pb.CloseIORequest) -> Empty:
        """No more stdin."""
        if request.stdin:
            await self._tasks.close_stdin(_of(request), _exec(request))
        return Empty()

    async def shutdown(self, request: pb.ShutdownRequest) -> Empty:
        """What serves one task serves all, and goes on; one that was not made is waited for no more."""
        if request.id:
            await self._tasks.give_up(_of(request))
        return Empty()

    async def pause(self, request: pb.PauseRequest) -> Empty:
        """Stop its processes where they are."""
        await self._tasks.pause(_of(request))
        return Empty()

    async def resume(self, request: pb.ResumeRequest) -> Empty:
        """Let them go on."""
        await self._tasks.resume(_of(request))
        return Empty()

    async def checkpoint(self, _request: pb.CheckpointTaskRequest) -> Empty:
        """Refused."""
        raise Unimplemented("the shim of orlopd does not checkpoint tasks")


def _of(request: Any) -> Key:
    return asked.of_call(request.id)


def _exec(request: Any) -> str:
    name: str = request.exec_id
    if name and not asked.NAME.fullmatch(name):
        raise InvalidArgument(f"{name[:80]!r} is not the id of a process")
    return name


async def _stdio(request: Any) -> stdio.Stdio:
    return await threads.call(
        stdio.of, request.stdin, request.stdout, request.stderr, terminal=request.terminal
    )


def _document(given: AnyMessage, kind: str) -> bytes:
    """The JSON in it. Raises InvalidArgument."""
    if given.type_url.removeprefix("/") != kind:
        raise InvalidArgument(f"{given.type_url[:120]!r} was given where {kind} is known")
    return given.value


def _deleted(status: ExitStatus, pid: int) -> pb.DeleteResponse:
    found = pb.DeleteResponse(pid=pid, exit_status=status.code)
    found.exited_at.FromNanoseconds(status.finished_at)
    return found
