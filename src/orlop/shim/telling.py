"""What happened to a task, as the events that containerd has for that."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

from orlop.sandbox.spec import ExitStatus
from orlop.shim.api import events_pb2 as pb
from orlop.shim.api import types_pb2
from orlop.shim.events import Announcer
from orlop.shim.model import LiveTask, TaskProcess
from orlop.shim.rootfs import RootMount


class Teller:
    """Tells the containerd of each task."""

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer

    def created(self, task: LiveTask, root: Sequence[RootMount], pid: int) -> None:
        """It was made."""
        stdio = task.record.stdio
        io = pb.TaskIO(stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr, terminal=stdio.terminal)
        mounts = [types_pb2.Mount(type=one.kind, source=one.source, options=one.options) for one in root]
        name, bundle = task.record.id, task.record.bundle
        self._tell(task, pb.TaskCreate(container_id=name, bundle=bundle, rootfs=mounts, io=io, pid=pid))

    def added(self, task: LiveTask, process: TaskProcess) -> None:
        """One more process was made."""
        self._tell(task, pb.TaskExecAdded(container_id=task.record.id, exec_id=process.exec_id))

    def started(self, task: LiveTask, process: TaskProcess, pid: int) -> None:
        """A process runs."""
        name = task.record.id
        if process.exec_id:
            self._tell(task, pb.TaskExecStarted(container_id=name, exec_id=process.exec_id, pid=pid))
        else:
            self._tell(task, pb.TaskStart(container_id=name, pid=pid))

    def paused(self, task: LiveTask) -> None:
        """Its processes stand still."""
        self._tell(task, pb.TaskPaused(container_id=task.record.id))

    def resumed(self, task: LiveTask) -> None:
        """Its processes go on."""
        self._tell(task, pb.TaskResumed(container_id=task.record.id))

    def out_of_memory(self, task: LiveTask) -> None:
        """A process was killed for want of memory."""
        self._tell(task, pb.TaskOOM(container_id=task.record.id))

    def exited(self, task: LiveTask, process: TaskProcess, pid: int) -> None:
        """A process has ended."""
        assert process.exit is not None
        name = task.record.id
        event = pb.TaskExit(
            container_id=name, id=process.exec_id or name, pid=pid, exit_status=process.exit.code
        )
        event.exited_at.FromNanoseconds(process.exit.finished_at)
        self._tell(task, event)

    def deleted(self, task: LiveTask, status: ExitStatus, pid: int) -> None:
        """A task was removed."""
        event = pb.TaskDelete(container_id=task.record.id, pid=pid, exit_status=status.code)
        event.exited_at.FromNanoseconds(status.finished_at)
        self._tell(task, event)

    def _tell(self, task: LiveTask, event: Message) -> None:
        if not task.record.by_sandboxer:
            self._announcer.tell(task.record.events, task.record.namespace, event)
