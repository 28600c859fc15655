"""The containers that came through the door: each verb of an OCI runtime, done by the engine's.

Whoever makes a container, removes one or sees one end decides on its VM too. So they take turns at each VM,
by :attr:`orlop.oci.joining.Placed.turn`: none is made where another one has just made it, and none
ends that a container is about to be in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from orlop.bundle import document, elsewhere, oom, translate
from orlop.bundle import hooks as hooking
from orlop.bundle.output import CODE_LOST
from orlop.bundle.ports import PodPorts
from orlop.bundle.roles import Role
from orlop.errors import AlreadyExists, CannotRun, FailedPrecondition, NotFound, OrlopError
from orlop.host import cgroups, process, threads
from orlop.host.tasks import Tasks, Undo, roll_back, wanted_or_undone
from orlop.host.turns import Turns
from orlop.oci import companion as companions
from orlop.oci import conduit, events, groups, joining, questions, views
from orlop.oci.companion import Companion
from orlop.oci.joining import Placed
from orlop.oci.model import KEY, Bundle, bundle_of, described
from orlop.oci.protocol import FRONT
from orlop.pods import resolve
from orlop.pods.records import (
    REASON_OOM,
    ContainerFilter,
    ContainerPhase,
    ContainerRecord,
    PodFilter,
    PodRecord,
)
from orlop.pods.service import PodService
from orlop.sandbox.base import ProcessIO, StartedProcess
from orlop.sandbox.spec import Resources

log = logging.getLogger(__name__)

_GROUP = "orlop.oci/cgroup"
"""In a VM's record: the control group of the container that it was made for, which goes with the last of the
two."""

_KILL = 9
_CANNOT_RUN = 127


class Bundles:
    """The verbs. :meth:`open` before use, :meth:`close` after it; containers run on.

    ``left`` are stand-ins, by their pids, that were there before this daemon listened.
    """

    def __init__(self, pods: PodService, left: Iterable[int]) -> None:
        self._pods = pods
        self._left = set(left)
        self._tasks = Tasks()
        self._making: set[tuple[str, str]] = set()
        self._turns = Turns()
        self._ports = PodPorts()
        self._attached: dict[str, ProcessIO] = {}
        self._swept = asyncio.Event()

    def open(self) -> None:
        """Go on with the containers of an earlier daemon, as soon as the engine knows them again."""
        self._tasks.spawn(
            self._again(self._pods.pods(PodFilter(front=FRONT))), "the containers of OCI callers"
        )

    async def close(self) -> None:
        """Let go of everything that runs on."""
        await self._tasks.close()
        await self._ports.close()

    async def _again(self, before: list[PodRecord]) -> None:
        try:
            await self._pods.recovered()
            for pod in before:
                if not self._members(pod.id):
                    # Made for a container by a daemon which ended before there was one.
                    what = f"the making of container {pod.spec.name}"
                    await roll_back(what, self._pods.remove_pod(pod.id))
        finally:
            self._swept.set()
        for record in self._all():
            bundle = bundle_of(record)
            self._left.discard(bundle.companion.pid)
            self._follow(record, bundle)
            self._open_ports(record.pod_id, bundle)
            if record.phase is not ContainerPhase.CREATED:
                self._spawn(self._until_end(record.id, bundle), bundle)
        # The streams of these went through the daemon that is gone; and a create that it did not finish.
        for pid in tuple(self._left):
            await Companion(pid=pid, since=process.process_start_time(pid)).end(CODE_LOST)

    # Make

    async def create(self, asked: questions.ToCreate) -> None:
        """Make a container. A failure or cancellation leaves nothing behind."""
        key = (asked.root, asked.id)
        async with self._wanted(asked.stand_in):
            if key in self._making or self._find(*key) is not None:
                raise AlreadyExists("container with given ID already exists")
            self._making.add(key)
            try:
                with elsewhere.saying("another OCI runtime can serve it, as crun"):
                    await self._create(asked)
            finally:
                self._making.discard(key)

    @asynccontextmanager
    async def _wanted(self, given: questions.StandIn) -> AsyncIterator[None]:
        """End a stand-in with a failure in the block: whoever made it may be gone, and end it no more."""
        self._left.discard(given.pid)
        try:
            yield
        except BaseException:
            standing = Companion(pid=given.pid, since=given.since)
            await roll_back(f"process {given.pid}, which was to stand in", standing.kill())
            raise

    async def _create(self, asked: questions.ToCreate) -> None:
        config = document.config(asked.config.encode())
        translate.check(config)
        bundle = described(asked, config)
        config = await threads.call(views.of_caller, config, bundle)
        await threads.call(_check_sources, config, asked.bundle)
        self._place(config, bundle)
        hooks = config.hooks or document.OciHooks()
        try:
            await threads.call(groups.join, bundle.cgroup, bundle.companion.pid)
            # Some callers have the network made by these: the VM takes over what is there after them.
            early = (*(hooks.prestart or ()), *(hooks.create_runtime or ()))
            await hooking.must(early, bundle.state("creating"))
            async with self._placed(config, bundle) as placed:
                bundle = msgspec.structs.replace(bundle, network=placed.turn)
                record = await self._made(config, bundle, placed)
                self._open_ports(record.pod_id, bundle)
        except BaseException:
            await roll_back(f"the making of container {asked.id}", self._leave({bundle.cgroup}))
            raise
        self._follow(record, bundle)

    def _place(self, config: document.OciConfig, bundle: Bundle) -> Placed:
        running = {pod.id for pod in self._pods.pods(PodFilter(front=FRONT, ready=True))}
        return joining.place(config, bundle, self._all(), running)

    @asynccontextmanager
    async def _placed(self, config: document.OciConfig, bundle: Bundle) -> AsyncIterator[Placed]:
        """Where it belongs, which stays so in the block."""
        while True:
            before = self._place(config, bundle)
            async with self._turns.of(before.turn):
                now = self._place(config, bundle)
                if now.turn == before.turn:
                    yield now
                    return

    async def _made(self, config: document.OciConfig, bundle: Bundle, placed: Placed) -> ContainerRecord:
        if not placed.pod_id:
            # The VM of a create that was cut short has the network until it is removed.
            await self._swept.wait()
        # The engine goes on with what a caller does not wait for: others ask again, this one is gone.
        return await wanted_or_undone(
            f"the making of container {bundle.id}",
            self._make(config, bundle, placed),
            lambda record: self._unmake(bundle, record.pod_id),
        )

    async def _make(self, config: document.OciConfig, bundle: Bundle, placed: Placed) -> ContainerRecord:
        pod_id = placed.pod_id
        try:
            pod_id = pod_id or await self._new_vm(config, bundle)
            request = translate.container(
                config,
                bundle.id,
                bundle.directory,
                pod_id=pod_id,
                sink=bundle.companion.sink(tty=bundle.tty),
                stdin=bundle.companion.stdin,
                target=placed.target,
                annotations={KEY: msgspec.json.encode(bundle).decode()},
            )
            record = self._pods.container(await self._pods.create_container(request))
            if record.cannot_start:
                raise CannotRun(record.cannot_start)
        except BaseException:
            await roll_back(f"the making of container {bundle.id}", self._unmake(bundle, pod_id))
            raise
        return record

    async def _new_vm(self, config: document.OciConfig, bundle: Bundle) -> str:
        await threads.call(_check_network, bundle)
        own = {}
        if bundle.role is Role.ALONE and bundle.cgroup:
            await threads.call(groups.limit, bundle.cgroup, translate.limits_of(config))
            own = {_GROUP: bundle.cgroup}
        netns = bundle.companion.netns
        spec = translate.pod(config, bundle.id, bundle.root, netns=netns, cgroup=bundle.vm_group, front=FRONT)
        return await self._pods.run_pod(msgspec.structs.replace(spec, annotations=own))

    def _open_ports(self, pod_id: str, bundle: Bundle) -> None:
        if bundle.forwarded and bundle.companion.alive and self._pods.pod(pod_id).ready:
            self._ports.open(pod_id, bundle.companion.netns, partial(self._pods.connect, pod_id))

    async def _unmake(self, bundle: Bundle, pod_id: str) -> None:
        if not pod_id:
            return
        undo = Undo(f"container {bundle.id}")
        for record in self._members(pod_id):
            if bundle_of(record).companion == bundle.companion:
                await undo.step("it", self._pods.remove_container(record.id))
        if not self._members(pod_id):
            await undo.step("its VM", self._pods.remove_pod(pod_id))
        undo.finish()

    async def _leave(self, paths: Iterable[str]) -> None:
        """Remove these control groups, but for those in which another container or its VM is."""
        used = {bundle_of(record).cgroup for record in self._all()}
        used |= {pod.spec.cgroup_parent for pod in self._pods.pods(PodFilter(front=FRONT))}
        for path in set(paths) - used:
            await cgroups.leave(path)

    # Run

    async def start(self, asked: questions.ToStart) -> None:
        """Run a created container's process."""
        async with self._turns.of(f"{asked.root} {asked.id}"):
            record, bundle = self._known(asked)
            if (status := self._status(record, bundle)) != "created":
                raise FailedPrecondition(f"cannot start a container in the {status} state")
            try:
                await self._pods.start_container(record.id)
            finally:
                self._spawn(self._until_end(record.id, bundle), bundle)
        await hooking.may(bundle.after_start, bundle.state("running"))

    def _follow(self, record: ContainerRecord, bundle: Bundle) -> None:
        self._spawn(self._listen(record.id, bundle), bundle)

    async def _listen(self, container_id: str, bundle: Bundle) -> None:
        """Pass on what the stand-in hears, and end the container if it is gone."""
        companion = bundle.companion

        async def send(number: int) -> None:
            io = self._attached.get(container_id)
            if number == companions.WINDOW_CHANGED and io is not None:
                await conduit.resize(companion, io)
            else:
                await self._pods.signal_container(container_id, number)

        await conduit.hear(companion, send)
        with suppress(OrlopError):
            await self._pods.signal_container(container_id, _KILL)

    async def _until_end(self, container_id: str, bundle: Bundle) -> None:
        """Serve a container's stdin, and tell the stand-in of its end.

        The VM goes with the last of a pod, or with its sandbox.
        """
        attached = bundle.tty or bundle.companion.stdin
        if attached:
            self._spawn(self._attach(container_id, bundle), bundle)
        record = await self._pods.ended_container(container_id)
        if record is None:
            return
        code = record.exit_code
        if record.reason == REASON_OOM:
            await threads.call(oom.note, bundle.directory)
        await bundle.companion.end(_CANNOT_RUN if record.started_at == 0 else code)
        async with self._turns.of(joining.turn_of(record, bundle)):
            members = [(one, bundle_of(one)) for one in self._members(record.pod_id)]
            if bundle.role is Role.SANDBOX or all(self._status(*one) == "stopped" for one in members):
                await self._end_vm(record.pod_id)

    async def _end_vm(self, pod_id: str) -> None:
        """End a VM. What was made in it and never started has ended as well."""
        waiting = [bundle_of(one) for one in self._members(pod_id) if one.phase is ContainerPhase.CREATED]
        undo = Undo(f"pod {pod_id}")
        await undo.step("its ports", self._ports.drop(pod_id))
        if await undo.step("its VM", self._pods.stop_pod(pod_id)):
            for bundle in waiting:
                await undo.step(f"the stand-in of {bundle.id}", bundle.companion.kill())
        undo.finish()

    async def _attach(self, container_id: str, bundle: Bundle) -> None:
        try:
            io = await self._pods.attach(container_id, stdin=bundle.companion.stdin)
        except OrlopError as error:
            log.debug("container %s has ended already: %s", bundle.id, error)
            return
        self._attached[container_id] = io
        try:
            await conduit.resize(bundle.companion, io)
            await conduit.accompany(bundle.companion, io)
        finally:
            self._attached.pop(container_id, None)

    # Ask

    def state(self, asked: questions.About) -> dict[str, Any]:
        """The state as the specification has it."""
        return self._state(*self._known(asked))

    def states(self, asked: questions.ToList) -> list[dict[str, Any]]:
        """The states of all containers of the caller's root."""
        pairs = ((record, bundle_of(record)) for record in self._all())
        return [self._state(record, bundle) for record, bundle in pairs if bundle.root == asked.root]

    def members(self, asked: questions.ToPs) -> list[int]:
        """The processes of the host that are the container's: the one that stands in."""
        _, bundle = self._known(asked)
        return [bundle.companion.pid] if bundle.companion.alive else []

    # Change

    async def kill(self, asked: questions.ToKill) -> None:
        """Send a signal."""
        record, bundle = self._known(asked)
        number = resolve.signal_number(asked.signal)
        match self._status(record, bundle):
            case "running" | "paused":
                await self._pods.signal_container(record.id, number)
            case "created":
                await bundle.companion.kill()
            case _:
                raise FailedPrecondition("container not running")

    async def pause(self, asked: questions.ToPause) -> None:
        """Stop its processes where they are."""
        record, bundle = self._known(asked)
        if (status := self._status(record, bundle)) != "running":
            raise FailedPrecondition(f"container not running: {status}")
        await self._pods.pause_container(record.id)

    async def resume(self, asked: questions.ToResume) -> None:
        """Let them go on."""
        record, bundle = self._known(asked)
        if (status := self._status(record, bundle)) != "paused":
            raise FailedPrecondition(f"container not paused: {status}")
        await self._pods.resume_container(record.id)

    async def delete(self, asked: questions.ToDelete) -> None:
        """Remove a container, one that runs only with force; with force one that is not there is no error."""
        if (found := self._deletable(asked)) is None:
            return
        record, bundle = found
        async with self._turns.of(joining.turn_of(record, bundle)):
            # Whoever had the turn before may have started it, or removed it.
            now = self._deletable(asked)
            if now is None or now[0].id != record.id:
                return
            await self._remove(record, bundle)
        await hooking.may(bundle.after_end, bundle.state("stopped"))

    def _deletable(self, asked: questions.ToDelete) -> tuple[ContainerRecord, Bundle] | None:
        """What is to be deleted, None where nothing has to be. Raises NotFound, FailedPrecondition."""
        if (record := self._find(asked.root, asked.id)) is None:
            if asked.force:
                return None
            raise NotFound("container does not exist")
        bundle = bundle_of(record)
        status = self._status(record, bundle)
        if status in ("running", "paused") and not asked.force:
            why = f"that is not stopped: it is {status}"
            raise FailedPrecondition(f"cannot delete container {asked.id} {why}")
        return record, bundle

    async def _remove(self, record: ContainerRecord, bundle: Bundle) -> None:
        undo, left = Undo(f"container {bundle.id}"), {bundle.cgroup}
        if any(one.id != record.id for one in self._members(record.pod_id)):
            if bundle.role is Role.SANDBOX:
                await undo.step("its VM", self._end_vm(record.pod_id))
            await undo.step("it", self._pods.remove_container(record.id))
        else:
            with suppress(NotFound):  # somebody else has removed all of it
                left.add(self._pods.pod(record.pod_id).spec.annotations.get(_GROUP, ""))
            await undo.step("its ports", self._ports.drop(record.pod_id))
            await undo.step("its VM", self._pods.remove_pod(record.pod_id))
        await undo.step("its process", bundle.companion.kill())
        await undo.step("its control group", self._leave(left))
        undo.finish()

    async def exec(self, asked: questions.ToExec) -> None:
        """Run one more process; its stand-in ends with it."""
        given = asked.stand_in
        async with self._wanted(given):
            record, bundle = self._known(asked)
            if (status := self._status(record, bundle)) != "running":
                raise FailedPrecondition(f"cannot exec in a container that does not run: it is {status}")
            wanted = document.process(asked.process.encode())
            companion = companions.of(given.pid, given.since, stdin=given.stdin)
            io = await self._pods.exec(record.id, translate.command(wanted, stdin=given.stdin))
            self._spawn(self._run(companion, io, tty=wanted.terminal), bundle)

    async def _run(self, companion: Companion, io: StartedProcess, *, tty: bool) -> None:
        code = CODE_LOST
        try:
            code = await conduit.run(companion, io, tty=tty)
        finally:
            if not self._tasks.closed:
                await companion.end(code)

    async def update(self, asked: questions.ToUpdate) -> None:
        """Change limits; what is not said stays."""
        record, bundle = self._known(asked)
        wanted = translate.resources(document.resources(asked.resources.encode()))
        await self._pods.update_container(record.id, wanted)
        if self._pods.pod(record.pod_id).spec.cgroup_parent == bundle.cgroup:
            await threads.call(groups.limit, bundle.cgroup, wanted)
            # Afterwards: it gives the VM the processors for that, and leaves the group what a VM needs.
            quota = Resources(cpu_quota=wanted.cpu_quota, cpu_period=wanted.cpu_period)
            await self._pods.update_pod_resources(record.pod_id, Resources(), quota)

    async def stats(self, asked: questions.ToStats) -> dict[str, Any]:
        """What it uses, as runc's events have it."""
        record, bundle = self._known(asked)
        if (status := self._status(record, bundle)) not in ("running", "paused"):
            raise FailedPrecondition(f"container with id {asked.id} is not running: {status}")
        return events.statistics((await self._pods.container_stats(record.id)).stats)

    # What is known

    def _all(self) -> list[ContainerRecord]:
        return self._pods.containers(ContainerFilter(front=FRONT))

    def _members(self, pod_id: str) -> list[ContainerRecord]:
        return self._pods.containers(ContainerFilter(front=FRONT, pod_id=pod_id))

    def _find(self, root: str, container_id: str) -> ContainerRecord | None:
        for record in self._all():
            if record.name == container_id and bundle_of(record).root == root:
                return record
        return None

    def _known(self, asked: questions.About) -> tuple[ContainerRecord, Bundle]:
        record = self._find(asked.root, asked.id)
        if record is None:
            raise NotFound("container does not exist")
        return record, bundle_of(record)

    @staticmethod
    def _status(record: ContainerRecord, bundle: Bundle) -> str:
        if record.phase is ContainerPhase.RUNNING:
            return "paused" if record.paused else "running"
        if record.phase is ContainerPhase.CREATED and bundle.companion.alive:
            return "created"
        return "stopped"

    def _state(self, record: ContainerRecord, bundle: Bundle) -> dict[str, Any]:
        status = self._status(record, bundle)
        more = {"rootfs": bundle.rootfs, "created": bundle.created, "owner": ""}
        return {**bundle.state(status), **more}

    def _spawn(self, work: Coroutine[Any, Any, None], bundle: Bundle) -> None:
        self._tasks.spawn(work, f"container {bundle.id}")


def _check_sources(config: document.OciConfig, bundle: str) -> None:
    """Raise NotFound for a volume that is not there: for a kubelet, the engine would make a directory."""
    for mount in config.mounts or ():
        source = Path(bundle, mount.source)
        if mount.type == "bind" and not source.exists():
            raise NotFound(f"mount {mount.destination}: stat {source}: no such file or directory")


def _check_network(bundle: Bundle) -> None:
    """Raise FailedPrecondition when the VM would take the daemon's own network away."""
    if bundle.network == companions.network_at("/proc/self/ns/net"):
        raise FailedPrecondition("it asks for the host's network namespace, which a VM does not share")
