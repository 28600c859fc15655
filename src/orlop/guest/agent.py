"""The agent: all that exists in this VM, and what each request does to it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from orlop.guest.answer import Answer
from orlop.guest.containers import changes
from orlop.guest.containers.container import LiveContainer, lay_out
from orlop.guest.containers.execs import ExecTable
from orlop.guest.containers.process import Process
from orlop.guest.containers.volumes import PodVolumes, Work
from orlop.guest.devices.block import NOBODY, MountedDisks
from orlop.guest.devices.share import HostShare
from orlop.guest.launch import apart, holder, spawn
from orlop.guest.launch.userns import IdMaps
from orlop.guest.loop import Loop
from orlop.guest.machine import cgroup, clock, memory, setup, stats
from orlop.guest.machine.oom import OomWatch
from orlop.guest.machine.reserve import MemoryDivision
from orlop.guest.streams import connect
from orlop.guest.streams.bound import BoundSockets
from orlop.guest.streams.calls import HostSockets
from orlop.guest.streams.table import Streaming
from orlop.linux import usage
from orlop.wire import messages
from orlop.wire.messages import Done, Refused
from orlop.wire.statistics import ContainerUsage
from orlop.wire.values import Exit

ALIVE = ("created", "starting", "running")
"""A container's states in which it has a process."""

SETTLE_RETRY = 0.005
DELETE_ATTEMPTS = 2000
FREEZE_ATTEMPTS = 1000


class Agent:
    """State and requests. ``emit`` sends an event if somebody listens, and says whether it did."""

    def __init__(self, loop: Loop, streaming: Streaming, emit: Callable[[messages.Event], bool]) -> None:
        self.loop = loop
        self.streaming = streaming
        self.containers: dict[str, LiveContainer] = {}
        self.execs = ExecTable(streaming, self.adopt, self.emit)
        self.disks = MountedDisks(loop)
        self.id_maps = IdMaps()
        self.sockets = HostSockets(streaming, self.emit)
        self.bound = BoundSockets(streaming, self.emit, self.sockets.has)
        self.volumes = PodVolumes(self.disks, self.bound)
        self.identity = setup.PodIdentity()
        self.quiet = False
        self._emit = emit
        self._share = HostShare()
        self._oom = OomWatch(loop)
        self._memory = MemoryDivision()
        self._children: dict[int, Callable[[int], None]] = {}
        self._holder: spawn.Spawned | None = None
        loop.watch_children(self.reap)

    def emit(self, event: messages.Event) -> bool:
        """Send an event; whether it was sent. What ``quiet`` keeps back counts as sent."""
        return self.quiet or self._emit(event)

    # Children

    def adopt(self, process: Process) -> None:
        """Tell ``process`` when its child ends."""
        assert process.child is not None
        self._children[process.child.pid] = process.ended

    def reap(self) -> None:
        """Collect all children that ended, also those that were left to process 1."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self._children.pop(pid, None)
            if ended is not None:
                code = os.waitstatus_to_exitcode(status)
                ended(code if code >= 0 else 128 - code)

    # Requests: life

    def ping(self, request: messages.Ping, answer: Answer) -> None:
        """Answer."""
        answer.ok(Done())

    def setup(self, request: messages.Setup, answer: Answer) -> None:
        """Make this clone one pod's own. While it has no containers this can be repeated."""
        if self.containers:
            raise Refused("failed_precondition", "this VM belongs to a pod with containers already")
        self._share.locate(request.share)
        reply = self.identity.apply(request)
        self._divide_memory(anew=True)
        answer.ok(reply)

    def clock(self, request: messages.Clock, answer: Answer) -> None:
        """Tell the time, and correct it."""
        answer.ok(messages.ClockReply(time=clock.correct(request.shift, step=request.step)))

    def online(self, request: messages.Online, answer: Answer) -> None:
        """Use what was hot-plugged."""
        cpus = memory.online()
        self._divide_memory(anew=True)
        answer.ok(messages.OnlineReply(cpus=cpus))

    # Requests: containers

    def create(self, request: messages.Create, answer: Answer) -> None:
        """Make a container up to its gate; on any failure nothing of it stays."""
        spec = request.container
        if spec.id in self.containers:
            raise Refused("exists", f"container {spec.id} exists already")
        entry = LiveContainer(
            spec, self.streaming, self.disks, self.id_maps, self.volumes, sockets=self.sockets
        )
        self.containers[spec.id] = entry

        def on_found(problem: Refused | None) -> None:
            if entry.status != "creating":
                answer.refuse(_deleted(entry))
            elif problem is not None:
                self._abandon(entry, answer, problem)
            else:
                self.bring_up(entry, answer)

        scratch = (spec.disks.scratch,) if spec.disks.scratch else ()
        try:
            disks = spec.disks
            self.disks.find((*disks.root, *scratch, *disks.volumes, *disks.devices), on_found)
        except Exception as error:
            self._abandon(entry, answer, error)

    def bring_up(self, entry: LiveContainer, answer: Answer) -> None:
        """What :meth:`create` does, for an entry that was made."""
        self.containers[entry.spec.id] = entry
        process = entry.process

        def on_ready() -> None:
            if entry.status != "creating":
                return
            try:
                identity = entry.make_ready()
            except Exception as error:
                self._abandon(entry, answer, error)
                return
            if identity is not None:
                entry.status = "created"
                answer.ok(messages.Created(uid=identity.uid, gid=identity.gid, groups=identity.groups))

        def on_started(problem: Refused | None) -> None:
            if entry.status == "creating":
                self._abandon(
                    entry, answer, problem or Refused("internal", "the container's process ended early")
                )
            else:
                answer.refuse(_deleted(entry))

        process.on_ready = on_ready
        process.on_started = on_started
        process.on_exit = lambda code: self._on_exit(entry, code)
        try:
            view = entry.prepare(self._share)
            self._divide_memory()
            entry.spawn(view, self._namespace_owner(entry))
        except BaseException as error:
            self._abandon(entry, answer, error)
            return
        self.adopt(process)

    def start(self, request: messages.Start, answer: Answer) -> None:
        """Open the gate."""
        entry = self._container(request.id)
        if entry.status != "created":
            raise Refused("failed_precondition", f"container {request.id} is {entry.status}, not created")
        # At once, so that a second call finds it so: there is one gate, and one who is told of it.
        entry.status = "starting"
        entry.oom_kills = entry.cgroup.pairs("memory.events").get("oom_kill", 0)
        entry.watch = self._oom.add(entry.cgroup.path, lambda: self._on_memory_event(entry))

        def on_started(problem: Refused | None) -> None:
            if entry.status == "deleting":
                answer.refuse(_deleted(entry))
                return
            if problem is not None:
                entry.status = "stopped"
                answer.refuse(problem)
                return
            entry.status = "running"
            try:
                entry.started()
            except Refused as refused:
                entry.process.signal(9)
                answer.refuse(refused)
                return
            answer.ok(Done())

        entry.process.on_started = on_started
        entry.process.go()

    def signal(self, request: messages.Signal, answer: Answer) -> None:
        """Signal a process, or all of a container."""
        entry = self._container(request.id)
        if request.exec_id:
            self.execs.signal(request.id, request.exec_id, request.signal)
        elif request.all and request.signal == 9:
            entry.cgroup.kill()
        elif request.all:
            for pid in entry.cgroup.pids():
                try:
                    os.kill(pid, request.signal)
                except ProcessLookupError:
                    continue
        else:
            entry.process.signal(request.signal)
        answer.ok(Done())

    def delete(self, request: messages.Delete, answer: Answer) -> None:
        """Kill and release; answers when all is gone, or that it is not and why."""
        entry = self.containers.get(request.id)
        if entry is None:
            self.sockets.release(request.id)
            answer.ok(Done())
            return
        entry.status = "deleting"
        self.execs.kill_all(request.id)
        self._release(entry, lambda problem: answer.refuse(problem) if problem else answer.ok(Done()))

    def update(self, request: messages.Update, answer: Answer) -> None:
        """Change limits."""
        entry = self._container(request.id)
        entry.cgroup.apply(request.resources)
        entry.portion.limit = request.resources.memory_max or entry.portion.limit
        entry.portion.weight = request.resources.cpu_weight or entry.portion.weight
        self._divide_memory()
        answer.ok(Done())

    def freeze(self, request: messages.Freeze, answer: Answer) -> None:
        """Stop its processes, or let them go on; answers when the kernel has done it."""
        entry = self._container(request.id)
        if entry.status != "running":
            raise Refused("failed_precondition", f"container {request.id} is {entry.status}, not running")
        entry.frozen = request.frozen
        entry.cgroup.freeze(frozen=request.frozen)
        self._await_frozen(entry, request.frozen, answer, FREEZE_ATTEMPTS)

    def changes(self, request: messages.Changes, answer: Answer) -> None:
        """Tell what a container has changed in its image, or all of its files."""
        self._apart(changes.telling(self._container(request.id), self.streaming, request), answer)

    def resize(self, request: messages.Resize, answer: Answer) -> None:
        """Set a terminal's size."""
        entry = self._container(request.id)
        process = self.execs.get(request.id, request.exec_id).process if request.exec_id else entry.process
        process.resize(request.width, request.height)
        answer.ok(Done())

    def exec(self, request: messages.Exec, answer: Answer) -> None:
        """Run one more process in a container."""
        entry = self._container(request.container_id)
        if entry.status != "running":
            raise Refused("failed_precondition", f"container {entry.spec.id} is {entry.status}, not running")
        if entry.frozen:
            # It would stop on its way to the program, and nobody would hear of it again.
            raise Refused("failed_precondition", f"container {entry.spec.id} is paused")
        self.execs.start(request, entry, answer)

    # Requests: the pod

    def stats(self, request: messages.Stats, answer: Answer) -> None:
        """Measure."""
        found = []
        for id_, entry in self.containers.items():
            if entry.status in ALIVE:
                disk = entry.spec.disks.scratch
                found.append(
                    ContainerUsage(
                        id=id_,
                        usage=stats.usage(entry.cgroup, full=request.full),
                        layer=stats.written(entry.upper, self.disks.get(disk.id) if disk else None),
                    )
                )
        total, available = memory.figures()
        answer.ok(
            messages.StatsReply(
                pod=usage.unified(
                    cgroup.POD.read,
                    full=request.full,
                    processes=sum(one.usage.processes for one in found),
                ),
                containers=tuple(found),
                system_memory_total=total,
                system_memory_available=available,
                volumes=self.volumes.fill_of_disks() if request.volumes else (),
            )
        )

    def connect(self, request: messages.Connect, answer: Answer) -> None:
        """Connect a stream to a port."""
        streaming, stream = self.streaming, request.stream
        streaming.claim(stream)

        def on_connected(link: Any) -> None:
            streaming.table[stream] = connect.SocketStream(
                self.loop, streaming.send, stream, link, lambda: streaming.forget(stream)
            )
            answer.ok(Done())

        connect.dial(self.loop, request.port, on_connected, answer.refuse)

    def accept(self, request: messages.Accept, answer: Answer) -> None:
        """Join one who has connected to a socket of the host."""
        self.sockets.accept(request)
        answer.ok(Done())

    def prepare(self, request: messages.Prepare, answer: Answer) -> None:
        """Mount a disk for a container that is to come, once it is there."""

        def on_found(problem: Refused | None) -> None:
            try:
                if problem is not None:
                    raise problem
                mounted = self.disks.mount(request.disk, NOBODY, writable=True)
                lay_out(mounted.directories[0])
            except Refused as refused:
                answer.refuse(refused)
                return
            answer.ok(Done())

        self.disks.find((request.disk,), on_found)

    def dial(self, request: messages.Dial, answer: Answer) -> None:
        """Connect a stream to a socket of a container."""
        self.bound.dial(request)
        answer.ok(Done())

    def show(self, request: messages.Show, answer: Answer) -> None:
        """Have the host's sockets in a directory."""
        place = f"{self._share()}/{request.share}" if request.share else self.volumes.place(request.id)
        self.sockets.show(request, place)
        answer.ok(Done())

    # Requests: volumes

    def hold(self, request: messages.Hold, answer: Answer) -> None:
        """Have a volume, once its disk is there."""

        def on_found(problem: Refused | None) -> None:
            try:
                if problem is not None:
                    raise problem
                work = self.volumes.hold(request)
            except Refused as refused:
                answer.refuse(refused)
                return
            if work is None:
                answer.ok(Done())
            else:
                self._apart(work, answer)

        self.disks.find((request.disk,) if request.disk else (), on_found)

    def _apart(self, work: Work, answer: Answer) -> None:
        """Do what may take long in a process of its own, while everybody else is served."""

        def ended(code: int) -> None:
            try:
                work.finish(child.problem(code))
            except Refused as refused:
                answer.refuse(refused)
                return
            answer.ok(Done())

        try:
            child = apart.start(work.do)
        except OSError as error:
            work.finish(Refused("unavailable", f"no process can be started for it: {error.strerror}"))
            raise
        self._children[child.pid] = ended

    def fill(self, request: messages.Fill, answer: Answer) -> None:
        """Bring a volume up to date."""
        self.volumes.fill(request)
        answer.ok(Done())

    def fill_all(self, request: messages.FillAll, answer: Answer) -> None:
        """Bring volumes up to date."""
        for one in request.fills:
            self.volumes.fill(one)
        answer.ok(Done())

    def fetch(self, request: messages.Fetch, answer: Answer) -> None:
        """Read a file's end."""
        answer.ok(self.volumes.fetch(request))

    def drop(self, request: messages.Drop, answer: Answer) -> None:
        """Forget a volume."""
        self.volumes.drop(request.id)
        answer.ok(Done())

    def drop_all(self, request: messages.DropAll, answer: Answer) -> None:
        """Forget volumes."""
        for volume in request.ids:
            self.volumes.drop(volume)
        answer.ok(Done())

    def flush(self, request: messages.Flush, answer: Answer) -> None:
        """Have volumes written, and answer then."""
        child = self.volumes.flush()
        if child is None:
            answer.ok(Done())
            return

        def ended(code: int) -> None:
            child.close()
            answer.ok(Done())

        self._children[child.pid] = ended

    # Requests: a daemon that comes back

    def dump(self, request: messages.Dump, answer: Answer) -> None:
        """Tell all that outlives a daemon.

        What an earlier one was making does not: nobody would learn that it was made.
        """
        for entry in [entry for entry in self.containers.values() if entry.status == "creating"]:
            entry.status = "deleting"
            self._release(entry, lambda problem: None)
        answer.ok(
            messages.State(
                clock=time.time_ns(),
                containers=tuple(e.state() for e in self.containers.values() if e.status != "deleting"),
                streams=tuple(opened.offsets() for opened in self.streaming.table.values()),
            )
        )

    def resume(self, request: messages.Resume, answer: Answer) -> None:
        """Begin to send: the streams named from where they are wanted, the others not at all."""
        wanted = dict(request.streams)
        self.streaming.flowing = True
        self.execs.abandon()
        for stream, opened in list(self.streaming.table.items()):
            if stream in wanted:
                opened.resume(wanted[stream])
            else:
                opened.drain()
        self.sockets.resume()
        self.bound.resume()
        answer.ok(Done())

    # Helpers

    def _await_frozen(self, entry: LiveContainer, frozen: bool, answer: Answer, attempts: int) -> None:
        """Look until the kernel says that all of a container's processes stand still, or none has to."""
        if entry.status != "running" or entry.frozen is not frozen:
            answer.refuse(Refused("failed_precondition", f"container {entry.spec.id} changed meanwhile"))
        elif entry.cgroup.frozen is frozen:
            answer.ok(Done())
        elif attempts > 1:
            self.loop.call_later(
                SETTLE_RETRY, lambda: self._await_frozen(entry, frozen, answer, attempts - 1)
            )
        else:
            entry.frozen = False
            entry.cgroup.freeze(frozen=False)
            answer.refuse(Refused("unavailable", _moves_on(entry)))

    def _divide_memory(self, *, anew: bool = False) -> None:
        """Let the containers that live have what there is; ``anew`` after the guest's memory has changed."""
        if anew:
            self._memory.measure()
        living = (*ALIVE, "creating")
        self._memory.apply(one.portion for one in self.containers.values() if one.status in living)

    def _container(self, id_: str) -> LiveContainer:
        entry = self.containers.get(id_)
        if entry is None:
            raise Refused("not_found", f"there is no container {id_} in this VM")
        return entry

    def _namespace_owner(self, entry: LiveContainer) -> int:
        """The process whose PID namespace (and user namespace) the container shares; 0 for one of its own."""
        wanted = entry.spec.namespaces
        if wanted.pid == "container":
            return 0
        if wanted.pid == "pod":
            if self._holder is None:
                self._holder = holder.start(wanted)
            return self._holder.pid
        target = self._container(wanted.target)
        if target.status not in ALIVE:
            raise Refused("failed_precondition", f"container {wanted.target} is {target.status}, not running")
        return target.process.pid

    def _abandon(self, entry: LiveContainer, answer: Answer, error: BaseException) -> None:
        """A container that did not come to be: kill, release, then say why."""
        entry.status = "deleting"
        # Its caller is told why, once all is gone; not that it was killed on the way.
        entry.process.on_started = lambda problem: None
        refused = (
            error if isinstance(error, Refused) else Refused("internal", f"{type(error).__name__}: {error}")
        )
        if entry.process.pid:
            self.adopt(entry.process)
        self._release(entry, lambda problem: answer.refuse(refused))

    def _release(self, entry: LiveContainer, then: Callable[[Refused | None], None]) -> None:
        """Kill what is left until nothing is, then release what it used; ``then`` hears what came of it.

        Who asks while that is under way is told together with who asked first: released twice, the second
        time could meet a new container of the same name.
        """
        entry.leaving.append(then)
        if len(entry.leaving) == 1:
            self._try_release(entry, DELETE_ATTEMPTS)

    def _try_release(self, entry: LiveContainer, attempts: int) -> None:
        problem: Refused | None = None
        try:
            if not self._is_released(entry):
                if attempts > 1:
                    self.loop.call_later(SETTLE_RETRY, lambda: self._try_release(entry, attempts - 1))
                    return
                problem = _lives_on(entry)
        except Exception as error:
            problem = Refused("internal", f"container {entry.spec.id}: {type(error).__name__}: {error}")
        if problem is None:
            del self.containers[entry.spec.id]
            self._oom.remove(entry.watch)
            if not any(other.shares for other in self.containers.values()):
                self._share.leave()
        if entry.stuck:
            text = f"container {entry.spec.id}: could not unmount {'; '.join(entry.stuck)}"
            self.emit(messages.Log(level="warning", text=text[:8192]))
        waiting, entry.leaving = entry.leaving, []
        for then in waiting:
            then(problem)
        # After the answer has left.
        self.loop.call_soon(self.disks.forget_devices)

    def _is_released(self, entry: LiveContainer) -> bool:
        process = entry.process
        process.signal(9)
        alive = process.child is not None and process.exit is None
        return not alive and entry.release()

    def _on_exit(self, entry: LiveContainer, code: int) -> None:
        """The first process ended: so does everything else of the container."""
        entry.ended()
        entry.cgroup.kill()
        self._on_memory_event(entry)
        process = entry.process
        assert process.exit is not None
        killed = entry.oom_kills > 0 and code != 0
        process.exit = Exit(code=code, finished_at=process.exit.finished_at, oom_killed=killed)
        if entry.status in ("running", "created"):
            entry.status = "stopped"
            self.emit(messages.ContainerExited(id=entry.spec.id, exit=process.exit))
        self._divide_memory()

    def _on_memory_event(self, entry: LiveContainer) -> None:
        kills = entry.cgroup.pairs("memory.events").get("oom_kill", 0)
        if kills > entry.oom_kills:
            entry.oom_kills = kills
            self.emit(messages.OutOfMemory(id=entry.spec.id))


def _deleted(entry: LiveContainer) -> Refused:
    return Refused("failed_precondition", f"container {entry.spec.id} was deleted meanwhile")


def _moves_on(entry: LiveContainer) -> str:
    """What to say of a container whose processes the kernel cannot stop."""
    seconds = FREEZE_ATTEMPTS * SETTLE_RETRY
    return (
        f"container {entry.spec.id} cannot be paused: not all of its processes stand still after {seconds:g}"
        " seconds, because one waits for a disk or a volume; try again"
    )


def _lives_on(entry: LiveContainer) -> Refused:
    """What to say of a container whose processes SIGKILL does not end."""
    seconds = DELETE_ATTEMPTS * SETTLE_RETRY
    found = ", ".join(str(pid) for pid in entry.cgroup.pids()[:8]) or "none"
    return Refused(
        "unavailable",
        f"container {entry.spec.id} is not gone {seconds:g} seconds after it was killed (processes of the"
        f" guest: {found}); try again, or stop its pod, which ends its virtual machine",
    )
