"""A task is made: its VM, its container, and what is outside of the engine for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orlop.bundle import document, elsewhere, translate
from orlop.bundle import hooks as hooking
from orlop.errors import CannotRun, FailedPrecondition, InvalidArgument
from orlop.host import netns, threads
from orlop.host.tasks import Undo, roll_back, wanted_or_undone
from orlop.pods.records import ContainerFilter, PodFilter, PodRecord
from orlop.pods.requests import ContainerRequest
from orlop.pods.service import PodService
from orlop.sandbox.spec import PodSpec
from orlop.shim import hosts, model, placing, rootfs
from orlop.shim.loggers import Loggers
from orlop.shim.model import Key, LiveTask, TaskProcess, TaskRecord
from orlop.shim.places import FRONT
from orlop.shim.rootfs import RootMount

log = logging.getLogger(__name__)

NETNS = "shim-netns"
MOST_CONFIG = 8 << 20


class Maker:
    """Makes tasks, and takes away what is theirs alone. Network namespaces are below ``state``."""

    def __init__(self, pods: PodService, state: Path) -> None:
        self.loggers = Loggers(state)
        self._pods = pods
        self._netns = state / NETNS

    async def make(
        self,
        record: TaskRecord,
        root: tuple[RootMount, ...],
        config: document.OciConfig,
        sandbox: LiveTask | None,
    ) -> LiveTask:
        """The task, ready to start: a sandbox, a container in ``sandbox``, or one with a VM of its own.

        A failure leaves nothing behind.
        """
        if record.sandbox:
            return await self.sandbox(record, placing.pod(config, *record.key, netns=placing.network(config)))
        if sandbox is None:
            self._check_alone(record, config)
        rootfs.check(root)
        pod_id = "" if sandbox is None else sandbox.pod_id
        return await self._wanted(
            f"the making of task {record.id}", self._container(record, root, config, pod_id)
        )

    def _check_alone(self, record: TaskRecord, config: document.OciConfig) -> None:
        """Raise FailedPrecondition for a task that is to be in another's namespaces, and not in its VM."""
        infos = [self._pods.pod_info(pod.id) for pod in self._pods.pods(PodFilter(front=FRONT, ready=True))]
        vms = {info.get("pid") for info in infos}
        for kind, pid in translate.joined(config).items():
            if pid and pid in vms:
                raise FailedPrecondition(
                    f"task {record.id} asks for the {kind} namespace of process {pid}, which is the VM of "
                    "another task: only the containers of a pod share one; run it without"
                )

    async def sandbox(self, record: TaskRecord, spec: PodSpec) -> LiveTask:
        """The VM of a sandbox. One that has ended by then was not made. A failure leaves nothing behind."""
        await threads.call(hosts.check_path, "network", spec.netns, record.id)
        return await self._wanted(f"the making of sandbox {record.id}", self._sandbox(record, spec))

    async def _wanted(self, what: str, making: Coroutine[Any, Any, LiveTask]) -> LiveTask:
        """The task, which is taken away again when nobody waits for it any more."""
        # The engine goes on with what a caller has left: others ask again, but containerd gives the task up.
        with elsewhere.saying(placing.REMEDY):
            return await wanted_or_undone(what, making, self._discard)

    async def _discard(self, task: LiveTask) -> None:
        if task.record.member:
            await self._unmake(task.record, container_id=task.container_id)
        else:
            await self._unmake(task.record, task.pod_id)

    async def _sandbox(self, record: TaskRecord, spec: PodSpec) -> LiveTask:
        if not spec.netns:
            record = msgspec.structs.replace(record, netns=await self._new_network(record.key))
        spec = msgspec.structs.replace(
            spec, netns=spec.netns or record.netns, annotations=model.encoded(record)
        )
        pod_id = ""
        try:
            pod_id = await self._pods.run_pod(spec)
            pod = self._pods.pod(pod_id)
            if not pod.ready:
                # Its end was told when nobody knew that it is this task's.
                raise FailedPrecondition(f"task {record.id}: its VM has ended already: {pod.reason}")
        except BaseException:
            await roll_back(f"the making of sandbox {record.id}", self._unmake(record, pod_id))
            raise
        return LiveTask(record, pod_id, "", TaskProcess(record.stdio))

    async def _container(
        self, record: TaskRecord, root: tuple[RootMount, ...], config: document.OciConfig, pod_id: str
    ) -> LiveTask:
        own, alone = "", not pod_id
        assert config.root is not None
        directory = os.path.normpath(Path(record.bundle, config.root.path))
        try:
            stdio = await self.loggers.start(record.key, "", record.stdio)
            record = msgspec.structs.replace(record, stdio=stdio)
            if root:
                record = msgspec.structs.replace(record, rootfs=directory)
                await threads.call(rootfs.mount, root, Path(directory))
            path = placing.network(config) if alone else self._pods.pod(pod_id).spec.netns
            if not path:
                path = await self._new_network(record.key)
                record = msgspec.structs.replace(record, netns=path)
            if config.hooks is not None:
                record = _with_hooks(record, config, config.hooks)
                # Some callers have the network made by these: the VM takes over what is there after them.
                early = (*(config.hooks.prestart or ()), *(config.hooks.create_runtime or ()))
                await _run(early, record, path)
            if alone:
                pod_id = own = await self._pods.run_pod(placing.pod(config, *record.key, netns=path))
            container_id = await self._pods.create_container(self._request(record, config, pod_id))
            if reason := self._pods.container(container_id).cannot_start:
                await self._pods.remove_container(container_id)
                raise CannotRun(reason)
        except BaseException:
            await roll_back(f"the making of task {record.id}", self._unmake(record, own))
            raise
        return LiveTask(record, pod_id, container_id, TaskProcess(record.stdio))

    def _request(self, record: TaskRecord, config: document.OciConfig, pod_id: str) -> ContainerRequest:
        made = translate.container(
            config,
            record.id,
            record.bundle,
            pod_id=pod_id,
            sink=record.stdio.sink,
            stdin=bool(record.stdio.stdin),
            target="",
            annotations=model.encoded(record),
        )
        others = self._pods.containers(ContainerFilter(front=FRONT, pod_id=pod_id)) if record.member else None
        namespaces = placing.namespaces(config, record.id, others)
        return msgspec.structs.replace(made, tty=record.stdio.terminal, namespaces=namespaces)

    async def _new_network(self, key: Key) -> str:
        """A network namespace with nothing in it. Raises FailedPrecondition."""
        # A sign that neither of them has: namespace "a-b" and task "c" are not "a" and "b-c".
        path = self._netns / "+".join(key)
        try:
            await netns.create(path)
        except OSError as error:
            raise FailedPrecondition(
                f"no network namespace can be made at {path}: {error.strerror}"
            ) from error
        return os.fspath(path)

    async def _unmake(self, record: TaskRecord, pod_id: str = "", container_id: str = "") -> None:
        undo = Undo(f"task {record.id}")
        gone = True
        if container_id:
            gone = await undo.step("it", self._pods.remove_container(container_id))
        if pod_id:
            gone = await undo.step("its VM", self._pods.remove_pod(pod_id))
        await undo.step("its logging program", self.loggers.kill(record.key, ""))
        if gone:
            await undo.step("what is its own", self.release(record))
        undo.finish()

    async def started(self, record: TaskRecord, pid: int) -> None:
        """Run what is to run when a task was started; its process is ``pid``. What fails is logged."""
        await hooking.may(record.after_start, record.state("running", pid))

    async def release(self, record: TaskRecord) -> None:
        """Take away what was made for a task outside of the engine, and run what is to run then."""
        undo = Undo(f"task {record.id}")
        if record.rootfs:
            await undo.step("its root file system", threads.call(rootfs.unmount, record.rootfs))
        if record.netns:
            await undo.step("its network namespace", netns.delete(Path(record.netns)))
        undo.finish()
        await hooking.may(record.after_end, record.state("stopped"))

    async def remove_empty(self, pods: Sequence[PodRecord]) -> None:
        """Remove the VMs of an earlier daemon which ended before there was a container in them."""
        for pod in pods:
            if not self._pods.containers(ContainerFilter(front=FRONT, pod_id=pod.id)):
                await roll_back(f"the making of task {pod.spec.name}", self._pods.remove_pod(pod.id))

    async def sweep(self, wanted: set[Path]) -> None:
        """Remove the network namespaces that were made for tasks which then were not."""
        found = set(self._netns.iterdir()) if self._netns.is_dir() else set()
        for path in found - wanted:
            try:
                await netns.delete(path)
            except OSError as error:
                log.warning("%s is nobody's and cannot be removed: %s", path, error.strerror)


def _with_hooks(record: TaskRecord, config: document.OciConfig, hooks: document.OciHooks) -> TaskRecord:
    return msgspec.structs.replace(
        record,
        after_start=hooks.poststart or (),
        after_end=hooks.poststop or (),
        version=config.oci_version,
        annotations=config.annotations or {},
    )


async def _run(early: Sequence[document.OciHook], record: TaskRecord, path: str) -> None:
    """Run the hooks that come before the container. They find its network by a process: it has none yet."""
    if early:
        async with netns.inhabited(Path(path)) as pid:
            await hooking.must(early, record.state("creating", pid))


def read_config(bundle: str) -> bytes:
    """The text of a bundle's ``config.json``. Blocks. Raises FailedPrecondition, InvalidArgument."""
    path = Path(bundle, "config.json")
    try:
        with path.open("rb") as file:
            data = file.read(MOST_CONFIG + 1)
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MOST_CONFIG:
        raise InvalidArgument(f"{path} is longer than {MOST_CONFIG} bytes")
    return data
