"""One container: its root file system, its bundle, its monitor; made, watched, removed.

    (nothing) --create--> created --start--> running --exit--> exited --delete--> (nothing)

The exit is known when the monitor has ended: it writes the exit code first. Everything is
recorded in files, so that a later daemon can go on, or remove what is there.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from orlop.errors import FailedPrecondition, NotFound, OrlopError, Unavailable
from orlop.host import cgroups, cgroupstats, files, mounts, privacy, process, tasks, threads
from orlop.host.cgroups import Cgroup
from orlop.linux import changes as listing
from orlop.linux import packing, syscalls
from orlop.linux.changes import Change
from orlop.linux.removal import remove_tree
from orlop.linux.users import Identity
from orlop.sandbox import crilog
from orlop.sandbox.process import apparmor, conmon, identity, layout, oci, volumes
from orlop.sandbox.process.forward import Forward
from orlop.sandbox.process.layout import ContainerPaths, ContainerProcesses, PodPaths
from orlop.sandbox.process.runtime import Runtime
from orlop.sandbox.rawoutput import RawOutput
from orlop.sandbox.spec import ContainerSpec, ExitStatus, NamespaceMode, PodSpec, UserIds
from orlop.storage import direct, rootfs
from orlop.volumes import shown

log = logging.getLogger(__name__)

KILLED = 128 + signal.SIGKILL
_KILL_TIME = 10.0
_FREEZE_TIME = 5.0
_FREEZE_AGAIN = 0.01
_LATE_RUNTIME = 5.0
_CHANGES = 1024
"""Changes that are told at once."""


@dataclass(frozen=True)
class Tools:
    """The programs that run containers, and where CSI drivers say which volumes are for VMs alone."""

    runtime: Runtime
    conmon: str
    direct_volumes: str = ""


class ProcessContainer:
    """One container of a pod. :attr:`state` is None before it was created."""

    def __init__(
        self, tools: Tools, container_id: str, paths: ContainerPaths, state: ContainerProcesses | None = None
    ) -> None:
        self.id = container_id
        self.paths = paths
        self.state = state
        self._tools = tools
        self._cgroup: Cgroup | None = None
        self._exit: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._tasks = tasks.Tasks()
        self._watcher: asyncio.Task[None] | None = None
        # Making, starting and removing exclude one another: what one mounts, the other must not remove.
        self._changing = asyncio.Lock()
        self._removed = False
        self._forward: Forward | None = None
        if state is not None:
            self._watch(state)

    # Make

    async def create(
        self, pod: PodSpec, spec: ContainerSpec, paths: PodPaths, *, cgroup: str, target_pid: int = 0
    ) -> UserIds:
        """Make the container, ready to start; returns who it will run as.

        What is left after a failure, :meth:`delete` removes. Raises FailedPrecondition,
        InvalidArgument or NotFound with the reason.
        """
        async with self._changing:
            if self._removed:
                raise FailedPrecondition(f"container {spec.name} was removed before it was made")
            # To its end even when cancelled: a thread that mounts cannot be called back, and must have
            # ended before anybody removes what it mounts below.
            making = self._create(pod, spec, paths, cgroup=cgroup, target_pid=target_pid)
            return await tasks.uncancelled(making)

    async def _create(
        self, pod: PodSpec, spec: ContainerSpec, paths: PodPaths, *, cgroup: str, target_pid: int
    ) -> UserIds:
        bundle = self.paths.bundle
        owners = owners_of(pod, paths)
        group = None if owners is None else owners.gid
        await threads.call(lambda: privacy.make_private(bundle, group=group))
        if spec.root.directory:
            root = await rootfs.find_directory(spec.root.directory)
        else:
            root = await rootfs.mount_rootfs(spec.root.layers, self.paths.rootfs, owned_by=owners)
        refuse = partial(_refuse, pod.uid, self._tools.direct_volumes)
        mounted = await volumes.volume_mounts(spec, self.paths, owners, refuse)
        profile = await apparmor.profile_of(spec.security)

        def describe() -> Identity:
            who = identity.resolve(spec.security, root)
            inputs = oci.Inputs(
                pod=pod,
                spec=spec,
                paths=paths,
                rootfs=root,
                identity=who,
                mounts=mounted,
                cgroup=spec.on_host.cgroup or self._cgroups_path(cgroup),
                target_pid=target_pid,
                apparmor=profile,
            )
            files.save(self.paths.document, msgspec.json.encode(oci.document(inputs)))
            if spec.sink.log:
                # The monitor opens it as it finds it.
                os.close(crilog.open_file(spec.sink.log, make_directory=True))
            return who

        who = await threads.call(describe)
        output = RawOutput(spec.sink) if spec.sink.raw and not conmon.direct(spec) else None
        if output is not None:
            await output.open()
        tools = self._tools
        try:
            started = await conmon.create(tools.conmon, tools.runtime, self.id, self.paths, spec)
            if output is not None:
                # Before it is started: nothing that it writes is missed.
                self._forward = await Forward.begin(self.paths.bundle, output)
        except BaseException:
            if output is not None:
                await output.close()
            raise
        state = ContainerProcesses(
            init=started.init,
            monitor=started.monitor,
            cgroup=spec.on_host.cgroup or self._cgroup_of(cgroup, started.init.pid),
        )
        # Before anything else can fail: whoever removes the container waits for the end that this sees.
        self._watch(state)
        self._record(state)
        return UserIds(uid=who.uid, gid=who.gid, groups=who.groups)

    def _cgroups_path(self, parent: str) -> str:
        if self._tools.runtime.systemd:
            return f"{Path(parent).name}:orlop:{self.id}"
        return f"{cgroups.expand(parent).rstrip('/')}/{self.id}"

    def _cgroup_of(self, parent: str, pid: int) -> str:
        if not self._tools.runtime.systemd:
            return self._cgroups_path(parent)
        try:
            return Cgroup.of_process(pid).path
        except ProcessLookupError:
            return f"{cgroups.expand(parent).rstrip('/')}/orlop-{self.id}.scope"

    def _record(self, state: ContainerProcesses) -> None:
        self.state = state
        layout.save(self.paths.record, state)

    @property
    def cgroup(self) -> Cgroup:
        """The container's cgroup. Raises NotFound before it was created."""
        if self.state is None:
            raise NotFound(f"container {self.id[:12]} does not run")
        if self._cgroup is None:
            self._cgroup = Cgroup(self.state.cgroup)
        return self._cgroup

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.state is not None and self.state.started_at > 0 and not self._exit.done()

    # Run

    async def start(self) -> int:
        """Let it run; returns the time (ns). Raises FailedPrecondition when it cannot be started."""
        async with self._changing:
            return await tasks.uncancelled(self._start())

    async def _start(self) -> int:
        if self.state is None or self._exit.done():
            raise FailedPrecondition(
                f"container {self.id[:12]} has ended or was not made, and cannot be started"
            )
        if self.state.started_at:
            raise FailedPrecondition(f"container {self.id[:12]} has been started already")
        await self._tools.runtime.start(self.id, self.state.init, self.paths.bundle / "runtime.log")
        now = time.time_ns()
        self._record(
            ContainerProcesses(
                init=self.state.init, monitor=self.state.monitor, cgroup=self.state.cgroup, started_at=now
            )
        )
        return now

    async def wait(self) -> ExitStatus:
        """The exit, once there is one."""
        return await asyncio.shield(self._exit)

    def signal(self, number: int, *, everyone: bool) -> None:
        """Signal the first process; with ``everyone``, KILL goes to all in the cgroup. Raises NotFound."""
        if self.state is None or self._exit.done():
            raise NotFound(f"container {self.id[:12]} does not run")
        init = self.state.init
        delivered = process.send_signal(init.pid, init.start_time, number)
        if number == signal.SIGKILL and everyone:
            self.cgroup.kill()
        elif not delivered:
            raise NotFound(f"container {self.id[:12]} does not run")

    async def freeze(self, *, frozen: bool) -> None:
        """Stop its processes where they are, or let them go on. Raises FailedPrecondition, Unavailable."""
        group, deadline = self.cgroup, time.monotonic() + _FREEZE_TIME
        try:
            while True:
                # Of control groups of version 1, one that forks meanwhile has to be told again.
                await threads.call(lambda: group.freeze(frozen=frozen))
                if await threads.call(lambda: group.frozen) is frozen:
                    return
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(_FREEZE_AGAIN)
            await threads.call(lambda: group.freeze(frozen=False))
        except OSError as error:
            raise FailedPrecondition(f"container {self.id[:12]} cannot be paused: {error}") from error
        raise Unavailable(
            f"container {self.id[:12]} cannot be paused: not all of its processes stand still after "
            f"{_FREEZE_TIME:g} seconds, because one waits for a disk; try again"
        )

    def _watch(self, state: ContainerProcesses) -> None:
        if self._watcher is None:
            self._watcher = self._tasks.spawn(
                self._wait_monitor(state), f"the watch on container {self.id[:12]}"
            )

    async def _wait_monitor(self, state: ContainerProcesses) -> None:
        if process.pid_alive(state.monitor.pid, state.monitor.start_time):
            await process.wait_pid(state.monitor.pid)
        try:
            status = await self._how_it_ended(state)
        except Exception as error:
            # Whoever waits for the end is told that there was one.
            log.exception("how container %s ended cannot be told", self.id[:12])
            status = ExitStatus(
                code=KILLED, finished_at=time.time_ns(), message=f"its end is unknown: {error}"
            )
        self._exit.set_result(status)

    async def forward_again(self, spec: ContainerSpec) -> None:
        """Go on with what an earlier daemon did: carry the output to where conmon cannot write it."""
        if spec.sink.raw and not conmon.direct(spec) and not self._exit.done():
            output = RawOutput(spec.sink)
            try:
                await output.open()
                self._forward = await Forward.begin(self.paths.bundle, output)
            except OrlopError as error:
                log.warning("output of container %s is not forwarded: %s", self.id[:12], error)
                await output.close()

    async def _how_it_ended(self, state: ContainerProcesses) -> ExitStatus:
        if self._forward is not None:
            await self._forward.finish()
        found = conmon.exit_code(self.paths.exit_file)
        if found is None:
            # Nobody holds its streams any more: it cannot go on as it should.
            with suppress(OrlopError):
                await process.kill_pid(state.init.pid, state.init.start_time)
            return ExitStatus(
                code=KILLED, finished_at=time.time_ns(), message="its monitor (conmon) was killed"
            )
        code, finished_at = found
        short_of_memory = (
            conmon.oom_seen(self.paths.bundle) or cgroupstats.oom_kills(Cgroup(state.cgroup)) > 0
        )
        return ExitStatus(code=code, finished_at=finished_at, oom_killed=short_of_memory and code != 0)

    # End

    async def kill(self) -> None:
        """Kill all of it and wait until the exit is known. Idempotent. Raises FailedPrecondition."""
        if self.state is None or self._exit.done():
            return
        with suppress(NotFound):
            self.signal(signal.SIGKILL, everyone=True)
        try:
            async with asyncio.timeout(_KILL_TIME):
                await self.wait()
        except TimeoutError as error:
            raise FailedPrecondition(
                f"container {self.id[:12]} does not end: its first process {self.state.init.pid} "
                "cannot be killed now"
            ) from error

    async def changes(self, layers: Sequence[str]) -> AsyncGenerator[Sequence[Change], None]:
        """What it has changed in its image of ``layers``, bottom first. NotFound when it is removed."""
        # Goes with the container's volumes, if nobody comes back to it.
        place = self.paths.volumes / f"changes-{secrets.token_hex(4)}"
        try:
            async with self._changing:
                self._check_there()
                image = await tasks.uncancelled(rootfs.mount_image(layers, place))
            # Whoever reads this may be slow, and must not keep the container from being removed.
            upper = os.fspath(self.paths.rootfs / "upper")
            with closing(listing.changes(upper, (os.fspath(image),))) as found:
                while part := await threads.call(_next_changes, found):
                    self._check_there()
                    yield part
            self._check_there()
        except (OSError, ValueError) as error:
            self._check_there()
            raise FailedPrecondition(
                f"what container {self.id[:12]} has changed cannot be told: {error}"
            ) from error
        finally:
            await tasks.uncancelled(self._drop_image(place))

    def archive(self, directory: Path | None) -> AsyncGenerator[bytes, None]:
        """All files of its root, ``directory`` or the overlay, packed. NotFound when it is removed."""
        root = os.fspath(directory or self.paths.rootfs / "rootfs")

        def opened() -> int:
            # Apart from the mount itself, which can go meanwhile.
            apart = syscalls.open_tree(root, recursive=False)
            try:
                return os.open(f"/proc/self/fd/{apart}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            finally:
                os.close(apart)

        return self._packed(opened, packing.tree)

    def layer(self, without: Collection[bytes]) -> AsyncGenerator[bytes, None]:
        """What it has changed in its image but for the paths ``without``, packed. NotFound when removed."""
        upper = os.fspath(self.paths.rootfs / "upper")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return self._packed(partial(os.open, upper, flags), lambda top: packing.layer(top, without))

    async def _packed(
        self, opened: Callable[[], int], pack: Callable[[int], Generator[bytes, None, None]]
    ) -> AsyncGenerator[bytes, None]:
        try:
            async with self._changing:
                self._check_there()
                top = await tasks.uncancelled(threads.call(opened), unwanted=os.close)
            try:
                with closing(pack(top)) as pieces:
                    while piece := await tasks.uncancelled(threads.call(next, pieces, b"")):
                        self._check_there()
                        yield piece
            finally:
                os.close(top)
            self._check_there()
        except (OSError, ValueError) as error:
            self._check_there()
            raise FailedPrecondition(
                f"the files of container {self.id[:12]} cannot be packed: {error}"
            ) from error

    async def _drop_image(self, place: Path) -> None:
        async with self._changing:
            await rootfs.unmount_rootfs(place)

    def _check_there(self) -> None:
        if self._removed:
            raise NotFound(f"container {self.id[:12]} was removed")

    async def delete(self) -> None:
        """Kill what still runs, release everything, remove the directories. Idempotent.

        The exit stays known to :meth:`wait`. Waits for a :meth:`create` under way; a later one is refused.
        Raises OrlopError or OSError when something stays.
        """
        self._removed = True
        await self.kill()  # a start that does not come back is ended by this
        async with self._changing:
            await self.kill()
            await tasks.uncancelled(self._remove())

    async def _remove(self) -> None:
        deadline = time.monotonic() + _LATE_RUNTIME
        while True:
            try:
                await self._remove_once()
                return
            except OSError as error:
                # The runtime that a killed monitor had started can still write into the bundle.
                if error.errno != errno.ENOTEMPTY or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.05)

    async def _remove_once(self) -> None:
        bundle = self.paths.bundle
        if self.state is None:
            monitor = await threads.call(conmon.leftover, bundle)
            if monitor.pid:
                await process.kill_pid(monitor.pid, monitor.start_time)
        else:
            # Processes that it left behind in a PID namespace of others.
            await threads.call(self.cgroup.kill)
        await self._tools.runtime.delete(self.id, bundle / "runtime.log")
        if self._watcher is not None and self._watcher is not asyncio.current_task():
            await asyncio.wait((self._watcher,))
        await rootfs.unmount_rootfs(self.paths.rootfs)
        await threads.call(_remove_files, self.paths)

    async def release(self) -> None:
        """Stop watching; the container goes on."""
        if self._forward is not None:
            await self._forward.stop()
        await self._tasks.close()


def _next_changes(found: Iterator[Change]) -> Sequence[Change]:
    return tuple(itertools.islice(found, _CHANGES))


def owners_of(pod: PodSpec, paths: PodPaths) -> rootfs.Owners | None:
    """Who root is in the pod's user namespace, if it has one. Raises InvalidArgument."""
    chosen = pod.namespaces
    if chosen.user is not NamespaceMode.POD:
        return None
    return rootfs.owners(paths.namespace("user"), chosen.uid_mappings, chosen.gid_mappings)


def _remove_files(paths: ContainerPaths) -> None:
    mounts.unmount_below(paths.bundle)
    remove_tree(paths.bundle)
    paths.exit_file.unlink(missing_ok=True)


def _refuse(uid: str, direct_volumes: str, path: str) -> None:
    """Raise for a volume of the pod ``uid`` that only a VM can have. Raises FailedPrecondition, NotFound."""
    shown.check_not_whole(path)
    direct.check_not_direct(path, uid, direct_volumes)
