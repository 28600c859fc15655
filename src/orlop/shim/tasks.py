"""The tasks of containerd: each verb of a shim, done by the engine's.

All that is known of a task is in the engine's own record of its container or pod; so it is there after a
restart, and goes with that. Of a pod of a kubelet's the sandbox container is the VM itself: no process runs
in its stead.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec

from orlop.bundle import document, oom, output, translate
from orlop.bundle.ports import PodPorts
from orlop.bundle.roles import Role
from orlop.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    OrlopError,
    ResourceExhausted,
)
from orlop.host import threads
from orlop.host.tasks import Tasks, Undo
from orlop.host.turns import Turns
from orlop.linux.usage import Usage
from orlop.pods.records import (
    REASON_OOM,
    ContainerFilter,
    ContainerPhase,
    ContainerRecord,
    EventKind,
    PodFilter,
    PodRecord,
)
from orlop.pods.service import PodService
from orlop.sandbox.base import StartedProcess
from orlop.sandbox.spec import ExitStatus
from orlop.shim import hosts, making, model, placing, running
from orlop.shim.events import Announcer
from orlop.shim.expected import ExpectedTask, ExpectedTasks
from orlop.shim.holding import KeeperLine
from orlop.shim.making import Maker
from orlop.shim.model import Key, LiveTask, TaskProcess, TaskRecord, TaskStatus
from orlop.shim.places import FRONT
from orlop.shim.rootfs import RootMount
from orlop.shim.stdio import Stdio
from orlop.shim.telling import Teller

log = logging.getLogger(__name__)

MOST_EXECS = 256
_ENDING = frozenset({1, 2, 3, 9, 15})
"""The signals that end a sandbox."""


_HELD: dict[str, Callable[[Stdio], tuple[str, ...]]] = {
    "in": lambda stdio: (stdio.stdin,),
    "out": lambda stdio: (stdio.stdout, stdio.stderr),
}
"""What the keeper holds of a process by one name each: input ends before output may."""


class ShimTasks:
    """The verbs. :meth:`open` before use, :meth:`close` after it; tasks run on."""

    def __init__(self, pods: PodService, state: Path) -> None:
        self.maker = Maker(pods, state)
        self.expected = ExpectedTasks(state)
        self._pods = pods
        self._keeper = KeeperLine(state)
        self._announcer = Announcer()
        self._tell = Teller(self._announcer)
        self._ports = PodPorts()
        self._tasks = Tasks()
        self._turns = Turns()
        self._live: dict[Key, LiveTask] = {}
        self._found = asyncio.Event()

    # Of the daemon

    def open(self) -> None:
        """Go on with the tasks of an earlier daemon, as soon as the engine knows them again."""
        self._tasks.spawn(self._again(), "the tasks of containerd")
        self._tasks.spawn(self._watch_pods(), "the pods of containerd")

    async def close(self) -> None:
        """Let go of everything that runs on."""
        await self._tasks.close()
        await self._ports.close()
        await self._announcer.close()
        await self._keeper.close()
        await self.maker.loggers.close()

    async def _again(self) -> None:
        await self._pods.recovered()
        try:
            await self._find_again()
        finally:
            self._found.set()

    async def _find_again(self) -> None:
        pods = self._pods.pods(PodFilter(front=FRONT))
        await self.maker.remove_empty([pod for pod in pods if model.decoded(pod.spec.annotations) is None])
        found = [self._of_pod(pod) for pod in pods]
        found += [self._of_container(one) for one in self._pods.containers(ContainerFilter(front=FRONT))]
        tasks = [task for task in found if task is not None]
        await self.maker.sweep({Path(task.record.netns) for task in tasks if task.record.netns})
        await self.expected.load()
        await self._keeper.begin()
        for task in tasks:
            self._live[task.record.key] = task
            await self.expected.drop(task.record.key)
            await self.maker.loggers.find_again(task.record.key, "", task.record.stdio)
            await self._hold(task)
            if task.container_id and task.first.started:
                self._follow(task)
            elif task.record.sandbox and task.first.exit is None:
                self._open_ports(task)
            elif task.record.sandbox:
                # It may have ended while no daemon ran: nobody has told that.
                self._tell.exited(task, task.first, 0)
        for key in self.expected.names:
            await self._keeper.expect(key)
        await self._keeper.end()
        # After it: what these read has no other writer any more.
        await self.maker.loggers.sweep()
        for task in tasks:
            if await self._given_up(task):
                self._tasks.spawn(self._forget(task), f"the removal of {task.name}")

    async def _given_up(self, task: LiveTask) -> bool:
        """Whether containerd has nothing left of a task that has ended: then it could tell nobody."""
        return not (self._pod_runs(task.pod_id) or await threads.call(os.path.isdir, task.record.bundle))

    async def _forget(self, task: LiveTask) -> None:
        async with self.turn(task.record.key):
            if self._live.get(task.record.key) is task:
                await self._remove(task)

    def _of_pod(self, pod: PodRecord) -> LiveTask | None:
        record = model.decoded(pod.spec.annotations)
        if record is None:
            return None
        first = TaskProcess(record.stdio, started=True)
        if not pod.ready:
            wanted = record.by_sandboxer and not pod.reason
            first.end(running.stopped() if wanted else running.lost(pod.reason))
        return LiveTask(record, pod.id, "", first)

    def _of_container(self, container: ContainerRecord) -> LiveTask | None:
        record = model.decoded(container.annotations)
        if record is None:
            return None
        first = TaskProcess(record.stdio, started=container.phase is not ContainerPhase.CREATED)
        return LiveTask(record, container.pod_id, container.id, first)

    async def _watch_pods(self) -> None:
        """Notice when a sandbox ends."""
        while True:
            with suppress(ResourceExhausted):
                async for event in self._pods.events():
                    if event.kind in (EventKind.STOPPED, EventKind.DELETED):
                        self._pod_ended(event.container_id)
            for task in list(self._live.values()):
                if not task.container_id and not self._pod_runs(task.pod_id):
                    self._pod_ended(task.pod_id)

    def _pod_runs(self, pod_id: str) -> bool:
        try:
            return self._pods.pod(pod_id).ready
        except NotFound:
            return False

    def _pod_ended(self, pod_id: str) -> None:
        for task in list(self._live.values()):
            if task.pod_id == pod_id and not task.container_id and task.first.exit is None:
                task.first.end(running.stopped() if task.stopping else running.lost("its VM has ended"))
                self._tell.exited(task, task.first, 0)
                self._tasks.spawn(self._drop_streams(task, task.first), f"the streams of {task.name}")

    # Make

    async def register(self, key: Key, events: str) -> None:
        """A task of that name will be made, whose events go to the socket at ``events``."""
        async with self.turn(key):
            # Before the command answers: containerd's next call may be to the next daemon.
            await self.expected.put(ExpectedTask(namespace=key[0], id=key[1], events=events))
            if key not in self._live:
                await self._keeper.expect(key)

    async def create(
        self, key: Key, bundle: str, root: tuple[RootMount, ...], stdio: Stdio, *, checkpoint: bool = False
    ) -> int:
        """Make a task, ready to start; its process on this host. A failure leaves nothing behind."""
        if checkpoint:
            raise FailedPrecondition("a task cannot be made from a checkpoint: a VM does not read those")
        async with self.turn(key):
            if key in self._live:
                raise AlreadyExists(f"task {key[1]} exists already in namespace {key[0]}")
            config = document.config(await threads.call(making.read_config, bundle))
            placing.check(config, key[1])
            await threads.call(hosts.check, config, key[1])
            record, sandbox = self._placed(key, bundle, stdio, config)
            task = await self.maker.make(record, root, config, sandbox)
            await self.adopt(task)
        pid = self.pid(task)
        self._tell.created(task, root, pid)
        return pid

    async def adopt(self, task: LiveTask) -> None:
        """Know a task that was just made; for who has its :meth:`turn`."""
        # At once: a VM may end any moment, and is watched for who is known. And before anybody can remove
        # it: what is held is let go of by then.
        self._live[task.record.key] = task
        await self._hold(task)
        await self.expected.drop(task.record.key)
        if task.record.sandbox:
            self._open_ports(task)

    def _placed(
        self, key: Key, bundle: str, stdio: Stdio, config: document.OciConfig
    ) -> tuple[TaskRecord, LiveTask | None]:
        """What is to be kept of a task, and the sandbox that it is to be in, if any. Raises NotFound."""
        place, sandbox_id = placing.place(config)
        expected = self.expected.get(key)
        events = expected.events if expected is not None else ""
        sandbox = None
        if place is Role.MEMBER:
            sandbox = self._live.get((key[0], sandbox_id))
            if sandbox is None or not sandbox.record.sandbox:
                raise NotFound(f"task {key[1]}: its sandbox {sandbox_id} is not there")
            events = events or sandbox.record.events
        record = TaskRecord(
            namespace=key[0],
            id=key[1],
            bundle=bundle,
            events=events,
            stdio=stdio,
            sandbox=place is Role.SANDBOX,
            member=place is Role.MEMBER,
        )
        return record, sandbox

    def _open_ports(self, task: LiveTask) -> None:
        """Let containerd reach the ports of a pod, in the namespace that it made for it."""
        # CRI-O forwards no ports for shims, and would find the namespace in use when it removes that.
        if task.record.hears and not task.record.netns:
            with suppress(NotFound):  # somebody has removed the pod: its other tasks are found all the same
                namespace = self._pods.pod(task.pod_id).spec.netns
                self._ports.open(task.pod_id, namespace, partial(self._pods.connect, task.pod_id))

    async def _hold(self, task: LiveTask) -> None:
        await self._keeper.hold_task(task.record.key, self.pid(task))
        await self._hold_streams(task, task.first)

    async def _hold_streams(self, task: LiveTask, process: TaskProcess) -> None:
        fifos = process.stdio.fifos
        for name, wanted in _HELD.items():
            if paths := [path for path in wanted(process.stdio) if path in fifos]:
                process.held.add(name)
                await self._keeper.hold(task.record.key, f"{process.exec_id}/{name}", paths)

    async def _drop_streams(self, task: LiveTask, process: TaskProcess) -> None:
        for name in list(process.held):
            process.held.discard(name)
            await self._keeper.drop(task.record.key, f"{process.exec_id}/{name}")
        if process.stdio.program:
            # It has to read all, and its task is not to wait for that.
            loggers = self.maker.loggers
            self._tasks.spawn(loggers.end(task.record.key, process.exec_id), f"the log of {task.name}")

    # Run

    async def start(self, key: Key, exec_id: str) -> int:
        """Run what was made: a task, or one more process of it. Its process on this host."""
        task = await self._known(key)
        process = self._process(task, exec_id)
        if process.standing is not TaskStatus.CREATED:
            reason = f" ({process.exit.message})" if process.exit is not None and process.exit.message else ""
            raise FailedPrecondition(
                f"{task.name} cannot be started: it is {process.standing.name.lower()}{reason}"
            )
        process.started = True
        pid = self.pid(task)
        if exec_id:
            await self._start_exec(task, process)
        elif task.container_id:
            try:
                await self._pods.start_container(task.container_id)
            except BaseException:
                self._follow(task, silent=True)
                raise
            self._follow(task)
            await self.maker.started(task.record, pid)
        self._tell.started(task, process, pid)
        return pid

    def _follow(self, task: LiveTask, *, silent: bool = False) -> None:
        self._tasks.spawn(self._until_end(task, silent=silent), f"the end of {task.name}")
        if task.first.stdio.attached and not silent:
            self._tasks.spawn(self._attach(task), f"the streams of {task.name}")

    async def _attach(self, task: LiveTask) -> None:
        stdin = bool(task.first.stdio.stdin)
        try:
            io = await self._pods.attach(task.container_id, stdin=stdin)
        except OrlopError as error:
            log.debug("%s has ended already: %s", task.name, error)
            return
        await running.accompany(task.first, io)

    async def _until_end(self, task: LiveTask, *, silent: bool) -> None:
        record = await self._pods.ended_container(task.container_id)
        if record is None:
            status = running.lost("it was removed")
        else:
            if record.reason == REASON_OOM:
                self._tell.out_of_memory(task)
                if not task.record.hears:
                    await threads.call(oom.note, task.record.bundle)
            status = ExitStatus(code=record.exit_code, finished_at=record.finished_at)
        with suppress(TimeoutError):
            async with asyncio.timeout(output.DRAIN_TIME):
                # A copy: containerd deletes those that have ended meanwhile.
                for one in [one for one in task.execs.values() if one.started]:
                    await one.ended.wait()
        pid = self.pid(task)
        task.first.end(status)
        if not silent:
            self._tell.exited(task, task.first, pid)
        await self._drop_streams(task, task.first)
        if record is not None and not task.record.member:
            await self._pods.stop_pod(task.pod_id)

    # Further processes

    async def exec(self, key: Key, exec_id: str, process: bytes, stdio: Stdio) -> None:
        """Make one more process ready to start."""
        asked = document.process(process)
        async with self.turn(key):
            task = await self._known(key)
            if not task.container_id:
                raise FailedPrecondition(
                    f"{task.name} is a VM, not a container: there is no program to run in it"
                )
            if task.first.standing is not TaskStatus.RUNNING:
                raise FailedPrecondition(f"{task.name} does not run")
            if exec_id in task.execs:
                raise AlreadyExists(f"{task.name} has a process {exec_id} already")
            if len(task.execs) >= MOST_EXECS:
                raise ResourceExhausted(
                    f"{task.name} has {MOST_EXECS} processes already, which nobody deletes"
                )
            stdio = await self.maker.loggers.start(key, exec_id, stdio)
            made = task.execs[exec_id] = TaskProcess(stdio, exec_id=exec_id, asked=asked)
            await self._hold_streams(task, made)
        self._tell.added(task, made)

    async def _start_exec(self, task: LiveTask, process: TaskProcess) -> None:
        assert process.asked is not None
        stdio = process.stdio
        asked = msgspec.structs.replace(process.asked, terminal=stdio.terminal)
        try:
            io = await self._pods.exec(task.container_id, translate.command(asked, stdin=bool(stdio.stdin)))
        except BaseException:
            process.end(running.lost("it was not started"))
            await self._drop_streams(task, process)
            raise
        self._tasks.spawn(self._run(task, process, io), f"process {process.exec_id} of {task.name}")

    async def _run(self, task: LiveTask, process: TaskProcess, io: StartedProcess) -> None:
        status = running.lost("its streams were lost")
        try:
            status = await running.run(process, io)
        finally:
            if not self._tasks.closed:
                pid = self.pid(task)
                process.end(status)
                self._tell.exited(task, process, pid)
                await self._drop_streams(task, process)

    # Change

    async def kill(self, key: Key, exec_id: str, number: int) -> None:
        """Send a signal. Raises NotFound for a process that has ended, as containerd expects it."""
        task = await self._known(key)
        process = self._process(task, exec_id)
        if process.standing is TaskStatus.STOPPED:
            if task.record.hears or number not in _ENDING:
                raise NotFound(f"{task.name}: process already finished")
            # CRI-O asks for the end of what has just ended by itself, and would take this for a failure.
        elif exec_id:
            if process.send is None:
                raise FailedPrecondition(f"{task.name}: process {exec_id} is not started")
            await process.send(number)
        elif not task.container_id:
            if number in _ENDING:
                self._tasks.spawn(self._pods.stop_pod(task.pod_id), f"the end of {task.name}")
        elif process.standing is TaskStatus.CREATED:
            await self._end_unstarted(task)
        else:
            try:
                await self._pods.signal_container(task.container_id, number)
            except FailedPrecondition as error:
                raise NotFound(f"{task.name}: process already finished") from error

    async def _end_unstarted(self, task: LiveTask) -> None:
        task.first.end(running.lost("it was killed before it was started"))
        self._tell.exited(task, task.first, 0)

    async def pause(self, key: Key) -> None:
        """Stop a task's processes where they are. Raises FailedPrecondition for one that does not run."""
        task = await self._known(key)
        await self._pods.pause_container(self._container(task))
        self._tell.paused(task)

    async def resume(self, key: Key) -> None:
        """Let them go on."""
        task = await self._known(key)
        await self._pods.resume_container(self._container(task))
        self._tell.resumed(task)

    @staticmethod
    def _container(task: LiveTask) -> str:
        if not task.container_id:
            raise FailedPrecondition(f"{task.name} is a VM, not a container: pause its containers")
        return task.container_id

    async def resize(self, key: Key, exec_id: str, columns: int, rows: int) -> None:
        """Set the size of a process's terminal."""
        task = await self._known(key)
        await running.resize(self._process(task, exec_id), columns, rows)

    async def close_stdin(self, key: Key, exec_id: str) -> None:
        """No more comes to a process's stdin than what clients have written by now."""
        task = await self._known(key)
        process = self._process(task, exec_id)
        if process.stdio.stdin:
            process.held.discard("in")
            await self._keeper.drop(key, f"{exec_id}/in")
            running.finish_stdin(process)

    async def update(self, key: Key, resources: bytes) -> None:
        """Change limits; what is not said stays. Those of a sandbox are the sum of its containers'."""
        task = await self._known(key)
        limits = translate.resources(document.resources(resources))
        if task.container_id:
            await self._pods.update_container(task.container_id, limits)

    # Ask

    async def wait(self, key: Key, exec_id: str, *, again: bool = False) -> ExitStatus:
        """Wait for the end of a process. ``again``: an earlier daemon was asked, which knew it."""
        task = await self._known(key)
        if again and exec_id and exec_id not in task.execs:
            return running.lost("its streams went through a daemon that is gone")
        process = self._process(task, exec_id)
        await process.ended.wait()
        assert process.exit is not None
        return process.exit

    async def state(self, key: Key, exec_id: str) -> tuple[LiveTask, TaskProcess]:
        """A task, and the process that is asked for."""
        task = await self._known(key)
        return task, self._process(task, exec_id)

    def standing(self, task: LiveTask, process: TaskProcess) -> TaskStatus:
        """How a process of a task stands, one that runs in a paused container as paused."""
        if process.standing is TaskStatus.RUNNING and task.container_id:
            with suppress(NotFound):
                if self._pods.container(task.container_id).paused:
                    return TaskStatus.PAUSED
        return process.standing

    async def usage(self, key: Key) -> Usage:
        """What a task uses: a sandbox what the whole pod does."""
        task = await self._known(key)
        if task.container_id:
            return (await self._pods.container_stats(task.container_id)).stats.usage
        return (await self._pods.pod_stats(task.pod_id)).stats.usage

    def pid(self, task: LiveTask) -> int:
        """The process of this host that a task is in: its VM's, 0 when there is none."""
        with suppress(NotFound):
            found = self._pods.pod_info(task.pod_id).get("pid", 0)
            return found if isinstance(found, int) else 0
        return 0

    # Remove

    async def delete(self, key: Key, exec_id: str) -> tuple[ExitStatus, int]:
        """Remove a process that does not run, a task with all that is its own; how it ended."""
        async with self.turn(key):
            task = await self._known(key)
            process = self._process(task, exec_id)
            if process.standing is TaskStatus.RUNNING:
                raise FailedPrecondition(f"{task.name} cannot be deleted: it is running")
            pid = self.pid(task)
            status = process.exit or running.lost("it was never started")
            process.end(status)
            if exec_id:
                await self._drop_streams(task, process)
                await self.maker.loggers.end(key, exec_id)
                del task.execs[exec_id]
            else:
                await self._remove(task)
                self._tell.deleted(task, status, pid)
            return status, pid

    async def give_up(self, key: Key) -> None:
        """A task that was announced and not made will not come. Idempotent."""
        async with self.turn(key):
            if self.expected.get(key) is not None:
                await self.expected.drop(key)
                await self._keeper.drop(key)

    async def clear(self, key: Key) -> tuple[ExitStatus, int]:
        """Kill and remove a task if it is there: containerd has given it up."""
        async with self.turn(key):
            await self.expected.drop(key)
            task = self._live.get(key)
            if task is None:
                await self._keeper.drop(key)
                return running.lost("there is no such task"), 0
            pid = self.pid(task)
            await self._remove(task)
            task.first.end(running.lost("containerd has given it up"))
            assert task.first.exit is not None
            return task.first.exit, pid

    async def _remove(self, task: LiveTask) -> None:
        undo = Undo(task.name)
        # First: containerd removes the pod's network namespace as soon as the task is gone.
        await undo.step("its ports", self._ports.drop(task.pod_id))
        if task.record.member:
            await undo.step("it", self._pods.remove_container(task.container_id))
        else:
            await undo.step("its VM", self._pods.remove_pod(task.pod_id))
        for process in (task.first, *task.execs.values()):
            await undo.step("its streams", self._drop_streams(task, process))
            await undo.step("its logging program", self.maker.loggers.end(task.record.key, process.exec_id))
        if undo.complete:
            await undo.step("what is its own", self.maker.release(task.record))
        undo.finish()
        self._live.pop(task.record.key, None)
        await self._keeper.drop(task.record.key)

    async def stop_sandbox(self, task: LiveTask) -> None:
        """End the VM of a sandbox, and be out of its network namespace by then. Idempotent."""
        task.stopping = True
        await self._ports.drop(task.pod_id)
        await self._pods.stop_pod(task.pod_id)
        self._pod_ended(task.pod_id)

    # What is known

    @asynccontextmanager
    async def turn(self, key: Key) -> AsyncIterator[None]:
        """One call at a time that makes or removes the task ``key``, when all that there are are known."""
        await self.known()
        async with self._turns.of("/".join(key)):
            yield

    async def known(self) -> None:
        """Return when the tasks of an earlier daemon are known."""
        await self._found.wait()

    def find(self, key: Key) -> LiveTask | None:
        """The task, if it is there."""
        return self._live.get(key)

    def created_at(self, task: LiveTask) -> int:
        """When its VM was made, in nanoseconds since the epoch; 0 when that is not known any more."""
        with suppress(NotFound):
            return self._pods.pod(task.pod_id).created_at
        return 0

    async def _known(self, key: Key) -> LiveTask:
        await self.known()
        task = self._live.get(key)
        if task is None:
            raise NotFound(f"task {key[1]} is not there in namespace {key[0]}")
        return task

    @staticmethod
    def _process(task: LiveTask, exec_id: str) -> TaskProcess:
        if not exec_id:
            return task.first
        process = task.execs.get(exec_id)
        if process is None:
            raise NotFound(f"{task.name} has no process {exec_id}")
        return process
