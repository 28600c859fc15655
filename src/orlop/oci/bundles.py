"""The containers that came through the door: each verb of an OCI runtime, done by the engine's.

All that is known of one is in the engine's own record, as an annotation; so it is there after a restart,
and goes with the container.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from orlop.bundle import document, translate
from orlop.bundle import hooks as hooking
from orlop.bundle.output import CODE_LOST
from orlop.errors import AlreadyExists, CannotRun, FailedPrecondition, NotFound, OrlopError
from orlop.host import cgroups, process, threads
from orlop.host.tasks import Tasks, Undo, roll_back
from orlop.host.turns import Turns
from orlop.oci import companion as companions
from orlop.oci import conduit, events, questions
from orlop.oci.companion import Companion
from orlop.oci.protocol import FRONT
from orlop.pods import resolve
from orlop.pods.records import ContainerFilter, ContainerPhase, ContainerRecord, PodFilter, PodRecord
from orlop.pods.service import PodService
from orlop.sandbox.base import ProcessIO, StartedProcess
from orlop.sandbox.spec import Resources
from orlop.value import Value

log = logging.getLogger(__name__)

KEY = "orlop.oci/bundle"
_KILL = 9
_CANNOT_RUN = 127
_IN_A_VM = ("ipc", "pid", "mount")
"""Namespaces that are another's only in the VM of that one."""


class Bundle(Value, frozen=True):
    """What a caller said when it made a container."""

    root: str
    id: str
    directory: str
    rootfs: str
    version: str
    created: str
    companion: Companion
    tty: bool = False
    cgroup: str = ""
    after_start: tuple[document.OciHook, ...] = ()
    after_end: tuple[document.OciHook, ...] = ()
    annotations: dict[str, str] = msgspec.field(default_factory=dict)

    def state(self, status: str) -> dict[str, Any]:
        """The state as the specification has it."""
        return {
            "ociVersion": self.version,
            "id": self.id,
            "pid": 0 if status == "stopped" else self.companion.pid,
            "status": status,
            "bundle": self.directory,
            "annotations": self.annotations,
        }


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
        self._attached: dict[str, ProcessIO] = {}

    def open(self) -> None:
        """Go on with the containers of an earlier daemon, as soon as the engine knows them again."""
        self._tasks.spawn(
            self._again(self._pods.pods(PodFilter(front=FRONT))), "the containers of OCI callers"
        )

    async def close(self) -> None:
        """Let go of everything that runs on."""
        await self._tasks.close()

    async def _again(self, before: list[PodRecord]) -> None:
        await self._pods.recovered()
        for pod in before:
            if not self._members(pod.id):
                # Made for a container by a daemon which ended before there was one.
                await roll_back(f"the making of container {pod.spec.name}", self._pods.remove_pod(pod.id))
        for record in self._all():
            bundle = _bundle(record)
            self._left.discard(bundle.companion.pid)
            self._follow(record, bundle)
            if record.phase is not ContainerPhase.CREATED:
                self._spawn(self._until_end(record.id, bundle), bundle)
        # The streams of these went through the daemon that is gone; and a create that it did not finish.
        for pid in tuple(self._left):
            await Companion(pid=pid, since=process.process_start_time(pid)).end(CODE_LOST)

    # Make

    async def create(self, asked: questions.ToCreate) -> None:
        """Make a container. A failure or cancellation leaves nothing behind."""
        key = (asked.root, asked.id)
        if key in self._making or self._find(*key) is not None:
            raise AlreadyExists("container with given ID already exists")
        self._making.add(key)
        try:
            await self._create(asked)
        finally:
            self._making.discard(key)

    async def _create(self, asked: questions.ToCreate) -> None:
        config = document.config(asked.config.encode())
        translate.check(config)
        await threads.call(_check_sources, config, asked.bundle)
        self._left.discard(asked.stand_in.pid)
        bundle = _described(asked, config)
        netns = bundle.companion.netns
        hooks = config.hooks or document.OciHooks()
        pod_id, target = self._sandbox_of(config)
        try:
            await threads.call(_join_cgroup, bundle)
            # Some callers have the network made by these: the VM takes over what is there after them.
            early = (*(hooks.prestart or ()), *(hooks.create_runtime or ()))
            await hooking.must(early, bundle.state("creating"))
            if not pod_id:
                await threads.call(_check_network, bundle.companion)
                await threads.call(_limit, bundle.cgroup, translate.limits_of(config))
                spec = translate.pod(
                    config, asked.id, asked.root, netns=netns, cgroup=bundle.cgroup, front=FRONT
                )
                pod_id = await self._pods.run_pod(spec)
            record = await self._make(config, bundle, pod_id, target)
        except BaseException:
            await roll_back(f"the making of container {asked.id}", self._unmake(bundle, pod_id))
            raise
        self._follow(record, bundle)

    async def _make(
        self, config: document.OciConfig, bundle: Bundle, pod_id: str, target: str
    ) -> ContainerRecord:
        request = translate.container(
            config,
            bundle.id,
            bundle.directory,
            pod_id=pod_id,
            sink=bundle.companion.sink(tty=bundle.tty),
            stdin=bundle.companion.stdin,
            target=target,
            annotations={KEY: msgspec.json.encode(bundle).decode()},
        )
        record = self._pods.container(await self._pods.create_container(request))
        if record.cannot_start:
            raise CannotRun(record.cannot_start)
        return record

    async def _unmake(self, bundle: Bundle, pod_id: str) -> None:
        undo = Undo(f"container {bundle.id}")
        if pod_id:
            for record in self._members(pod_id):
                if _bundle(record).companion == bundle.companion:
                    await undo.step("it", self._pods.remove_container(record.id))
            if not self._members(pod_id):
                await undo.step("its VM", self._pods.remove_pod(pod_id))
        await undo.step("its control group", _leave_cgroup(bundle))
        undo.finish()

    def _sandbox_of(self, config: document.OciConfig) -> tuple[str, str]:
        """The pod that it wants to be in, "" for its own, and the container whose processes it sees."""
        wanted = translate.joined(config)
        if not wanted:
            return "", ""
        companions_of = ((_bundle(record).companion, record) for record in self._all())
        owners = {
            one.pid: record for one, record in companions_of if one.pid in wanted.values() and one.alive
        }
        for kind, pid in wanted.items():
            if kind in _IN_A_VM and pid not in owners:
                raise FailedPrecondition(
                    f"it asks for the {kind} namespace of process {pid}, which is no container in a VM"
                )
        pods = {owners[pid].pod_id for pid in wanted.values() if pid in owners}
        if len(pods) > 1:
            raise FailedPrecondition("it asks for namespaces of several containers, which are in several VMs")
        pid = wanted.get("pid", 0)
        return next(iter(pods), ""), owners[pid].id if pid in owners else ""

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
        """Serve a container's stdin, and tell the stand-in of its end; the VM goes with the last of a pod."""
        attached = bundle.tty or bundle.companion.stdin
        if attached:
            self._spawn(self._attach(container_id, bundle), bundle)
        record = await self._pods.ended_container(container_id)
        if record is None:
            return
        code = record.exit_code
        await bundle.companion.end(_CANNOT_RUN if record.started_at == 0 else code)
        if all(one.phase is ContainerPhase.EXITED for one in self._members(record.pod_id)):
            await self._pods.stop_pod(record.pod_id)

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
        pairs = ((record, _bundle(record)) for record in self._all())
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
        found = self._find(asked.root, asked.id)
        if found is None:
            if asked.force:
                return
            raise NotFound("container does not exist")
        record, bundle = found, _bundle(found)
        status = self._status(record, bundle)
        if status in ("running", "paused") and not asked.force:
            why = f"that is not stopped: it is {status}"
            raise FailedPrecondition(f"cannot delete container {asked.id} {why}")
        undo = Undo(f"container {asked.id}")
        if len(self._members(record.pod_id)) > 1:
            await undo.step("it", self._pods.remove_container(record.id))
        # Asked for only now: two that are deleted at once would each leave the VM to the other.
        if undo.complete and all(one.id == record.id for one in self._members(record.pod_id)):
            await undo.step("its VM", self._pods.remove_pod(record.pod_id))
        await undo.step("its process", bundle.companion.kill())
        await undo.step("its control group", _leave_cgroup(bundle))
        undo.finish()
        await hooking.may(bundle.after_end, bundle.state("stopped"))

    async def exec(self, asked: questions.ToExec) -> None:
        """Run one more process; its stand-in ends with it."""
        record, bundle = self._known(asked)
        if (status := self._status(record, bundle)) != "running":
            raise FailedPrecondition(f"cannot exec in a container that does not run: it is {status}")
        wanted = document.process(asked.process.encode())
        given = asked.stand_in
        self._left.discard(given.pid)
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
            await threads.call(_limit, bundle.cgroup, wanted)
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
            if record.name == container_id and _bundle(record).root == root:
                return record
        return None

    def _known(self, asked: questions.About) -> tuple[ContainerRecord, Bundle]:
        record = self._find(asked.root, asked.id)
        if record is None:
            raise NotFound("container does not exist")
        return record, _bundle(record)

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


def _bundle(record: ContainerRecord) -> Bundle:
    return msgspec.json.decode(record.annotations[KEY], type=Bundle)


def _described(asked: questions.ToCreate, config: document.OciConfig) -> Bundle:
    given, hooks = asked.stand_in, config.hooks or document.OciHooks()
    assert config.root is not None and config.process is not None
    return Bundle(
        root=asked.root,
        id=asked.id,
        directory=asked.bundle,
        rootfs=os.path.normpath(os.path.join(asked.bundle, config.root.path)),  # noqa: PTH118
        version=config.oci_version,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        companion=companions.of(given.pid, given.since, stdin=given.stdin),
        tty=config.process.terminal,
        cgroup=_cgroup(config, systemd=asked.systemd_cgroup),
        after_start=hooks.poststart or (),
        after_end=hooks.poststop or (),
        annotations=config.annotations or {},
    )


def _check_sources(config: document.OciConfig, bundle: str) -> None:
    """Raise NotFound for a volume that is not there: for a kubelet, the engine would make a directory."""
    for mount in config.mounts or ():
        source = Path(bundle, mount.source)
        if mount.type == "bind" and not source.exists():
            raise NotFound(f"mount {mount.destination}: stat {source}: no such file or directory")


def _check_network(companion: Companion) -> None:
    """Raise FailedPrecondition when the VM would take the daemon's own network away."""
    own, asked = Path("/proc/self/ns/net").stat(), Path(companion.netns).stat()
    if (own.st_dev, own.st_ino) == (asked.st_dev, asked.st_ino):
        raise FailedPrecondition("it asks for the host's network namespace, which a VM does not share")


def _cgroup(config: document.OciConfig, *, systemd: bool) -> str:
    """The path of its control group, "" for none. Raises InvalidArgument."""
    path = config.linux.cgroups_path if config.linux else ""
    if not systemd or path.count(":") != 2:
        return cgroups.expand(path) if path else ""
    parent, prefix, name = path.split(":")
    return cgroups.expand(f"{cgroups.expand(parent or 'system.slice')}/{prefix}-{name}.scope")


def _join_cgroup(bundle: Bundle) -> None:
    if not bundle.cgroup:
        return
    group = cgroups.Cgroup(bundle.cgroup)
    try:
        group.create()
        group.add(bundle.companion.pid)
    except OSError as error:
        raise FailedPrecondition(
            f"the control group {bundle.cgroup} cannot be made: {error.strerror}"
        ) from error


def _limit(path: str, wanted: Resources) -> None:
    """Let the VM of a container have no more of the processors than the container may.

    The guest sees to it as well, and alone for memory and processes: the group holds the VM, too.
    """
    limits = cgroups.Limits(
        cpu_period=wanted.cpu_period,
        cpu_quota=wanted.cpu_quota,
        cpu_shares=wanted.cpu_shares,
        cpuset_cpus=wanted.cpuset_cpus,
        cpuset_mems=wanted.cpuset_mems,
    )
    if not path or limits == cgroups.Limits():
        return
    try:
        cgroups.Cgroup(path).set(limits)
    except OSError as error:
        raise FailedPrecondition(
            f"the limits of the control group {path} cannot be set: {error.filename}: {error.strerror}"
        ) from error


async def _leave_cgroup(bundle: Bundle) -> None:
    if bundle.cgroup:
        await cgroups.destroy(cgroups.Cgroup(bundle.cgroup))
