"""A container: its disks and mounts, its cgroup, its first process, and the way back from all of it."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace

from orlop.guest import paths
from orlop.guest.containers import devicefilter
from orlop.guest.containers.mounts import Builder, View, VolumeSource
from orlop.guest.containers.process import Process
from orlop.guest.containers.volumes import PodVolumes
from orlop.guest.devices.block import MountedDisks
from orlop.guest.launch import spawn
from orlop.guest.launch.lookup import RootDirectory
from orlop.guest.launch.pins import Pins
from orlop.guest.launch.program import TTY_GROUP, Program, add_program, add_terminal, prepare
from orlop.guest.launch.script import ANY, Script
from orlop.guest.launch.userns import IdMaps, outer_id, write_maps
from orlop.guest.machine import cgroup
from orlop.guest.machine.cgroup import GuestCgroup
from orlop.guest.machine.reserve import Portion
from orlop.guest.streams.calls import HostSockets
from orlop.guest.streams.table import Streaming
from orlop.linux import syscalls
from orlop.linux.users import Identity
from orlop.wire.messages import Refused
from orlop.wire.values import Container, ContainerState, GuestDevice, GuestLimits, GuestMount, PluggedDisk

_JOIN_SESSION_KEYRING = 1


class LiveContainer:
    """What the agent holds of a container; ``leaving`` are those who wait for its end.

    ``status`` only goes forward: creating, created, starting, running, stopped, deleting.
    """

    def __init__(
        self,
        spec: Container,
        streaming: Streaming,
        disks: MountedDisks,
        id_maps: IdMaps,
        volumes: PodVolumes,
        *,
        sockets: HostSockets,
    ) -> None:
        self.spec = spec
        self.status = "creating"
        self.process = Process(streaming, spec.streams, tty=spec.tty)
        self.portion = Portion(spec.resources.memory_max, spec.resources.cpu_weight)
        parent = cgroup.OPEN if self.portion.open else cgroup.POD
        self.cgroup = GuestCgroup(f"{parent.path}/{spec.id}")
        self.pid_namespace = -1
        self.frozen = False
        self.oom_kills = 0
        self.watch = -1
        self.stuck: list[str] = []
        """What of its disks could not be unmounted when it was released, and why."""
        self.leaving: list[Callable[[Refused | None], None]] = []
        self.devices: tuple[GuestDevice, ...] = ()
        """Those it gets, each with its node."""
        self.env: dict[bytes, bytes] = {}
        self.root: RootDirectory | None = None
        self._maps_due = False
        self._streaming = streaming
        self._disks = disks
        self._id_maps = id_maps
        self._volumes = volumes
        self._sockets = sockets
        self._directory = f"{paths.CONTAINERS}/{spec.id}"
        self._mounted: list[str] = []

    @property
    def shares(self) -> bool:
        """Whether it uses the host's share."""
        return bool(self.spec.root) or any(mount.kind == "share" for mount in self.spec.mounts)

    @property
    def root_is_shared(self) -> bool:
        """Whether each name in its root is asked of the host, when nobody holds it."""
        return bool(self.spec.root) and not self.spec.security.read_only_root

    @property
    def upper(self) -> str:
        """The directory that holds what the container wrote; "" before it is prepared."""
        return self._upper

    @property
    def layers(self) -> tuple[str, ...]:
        """The directories below that, the top first."""
        return self._layers

    @property
    def top(self) -> str:
        """Where its root is mounted, without its volumes."""
        return f"{self._directory}/root"

    _upper = ""
    _layers: tuple[str, ...] = ()

    def prepare(self, share: Callable[[], str]) -> View:
        """Mount the root file system and make the cgroup. ``share`` mounts the host's share on demand."""
        spec = self.spec
        os.makedirs(f"{self._directory}/root")
        self._mount_root(share)
        self.cgroup.create()
        small = 0 < spec.resources.memory_max < cgroup.SMALL_MEMORY
        self.cgroup.apply(spec.resources, memory=not small)
        self.devices = tuple(self._device(device) for device in spec.devices)
        sources = tuple(self._source(number, mount, share) for number, mount in enumerate(spec.mounts))
        return View(
            spec=spec,
            root=f"{self._directory}/root",
            sources=tuple(sorted(sources, key=lambda source: source.mount.target.rstrip("/").count("/"))),
            devices=self.devices,
            files=_own_files(),
        )

    def spawn(self, view: View, owner: int) -> None:
        """Clone the first process; it builds its file system and waits for :meth:`make_ready`.

        ``owner`` is the process whose PID namespace is joined, and with id mappings its user namespace.
        """
        spec = self.spec
        steps = Script()
        builder = Builder(view, steps)
        with ExitStack() as stack:
            group = _held(stack, self.cgroup.open())
            if not spec.security.privileged:
                devicefilter.restrict(group, self.devices)
            pid_namespace = _held(stack, _open_namespace(owner, "pid")) if owner else -1
            user_namespace = -1
            if owner and spec.namespaces.maps_users:
                user_namespace = _held(stack, _open_namespace(owner, "user"))
            stack.callback(builder.close)
            if self.root_is_shared:
                self._hold_targets(view)

            def launch(stdio: tuple[int, int, int], control: socket.socket) -> spawn.Spawned:
                spawn.set_stdio(steps, stdio)
                self._enter_namespaces(steps, user_namespace, control.fileno())
                builder.build()
                spawn.keep_only_control(steps, control.fileno())
                steps.gate(spawn.CONTROL)
                flags = 0 if owner else syscalls.CLONE_NEWPID
                if self._maps_due:
                    flags |= syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS
                return spawn.start(steps, flags=flags, cgroup=group, pid_namespace=pid_namespace)

            self._maps_due = spec.namespaces.maps_users and not owner
            self.process.spawn(launch)
        self.pid_namespace = _open_namespace(self.process.pid, "pid")

    def _hold_targets(self, view: View) -> None:
        """Hold what its mounts go to, and what is looked up next, until all of that is done."""
        root = os.open(view.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            pins = Pins(root)
            self.process.hold(pins)
            for target in ("/proc", "/dev", "/sys", "/etc"):
                pins.hold(target)
            for target in (
                *(target for _, target in view.files),
                *(one.mount.target for one in view.sources),
            ):
                pins.hold(target)
        finally:
            os.close(root)

    def _enter_namespaces(self, steps: Script, user_namespace: int, control: int) -> None:
        unshared = syscalls.CLONE_NEWCGROUP
        if self.spec.namespaces.maps_users:
            if user_namespace >= 0:
                steps.add("setns", user_namespace, syscalls.CLONE_NEWUSER, what="user namespace")
                unshared |= syscalls.CLONE_NEWNS
            else:
                steps.gate(control)
            steps.add("setresgid", 0, 0, 0)
            steps.add("setresuid", 0, 0, 0)
        else:
            unshared |= syscalls.CLONE_NEWNS
        steps.add("unshare", unshared)
        steps.add("umask", 0)
        steps.add("setsid")
        steps.add("keyctl", _JOIN_SESSION_KEYRING, b"orlop", tolerate=ANY)

    def make_ready(self) -> Identity | None:
        """The child is at a gate: look up its program, and lay the steps that lead to it. Raises Refused.

        None when it was the gate before, at which the child waits for its id mappings.
        """
        child = self.process.child
        assert child is not None
        if self._maps_due:
            self._maps_due = False
            write_maps(child.pid, self.spec.namespaces)
            child.go()
            return None
        spec = self.spec
        self.root = RootDirectory(child.pid, keeps=self.root_is_shared and spec.root_is_own)
        self.env = {key.encode(): value for key, value in spec.env}
        if spec.hostname:
            self.env.setdefault(b"HOSTNAME", spec.hostname.encode())
        pins = None
        if self.root_is_shared:
            pins = self.root.pins()
            self.process.hold(pins)
        prepared = prepare(Program(spec, spec.args, self.env, spec.tty), self.root, pins)
        owner = outer_id(prepared.identity.uid, spec.namespaces.uid_mappings)
        if spec.tty:
            master, path = self.root.terminal(owner, outer_id(TTY_GROUP, spec.namespaces.gid_mappings))
            self.process.adopt_terminal(master)
            add_terminal(child.script, path, console=True)
        add_program(child.script, prepared, make_cwd=True)
        child.script.lay()
        self.process.give_pipes(owner)
        self.process.let_go()
        return prepared.identity

    def started(self) -> None:
        """Exec succeeded: what had to wait takes effect."""
        if self.spec.namespaces.maps_users:
            self._set_oom_score()
        if 0 < self.spec.resources.memory_max < cgroup.SMALL_MEMORY:
            only = GuestLimits(
                memory_max=self.spec.resources.memory_max,
                memory_swap_max=self.spec.resources.memory_swap_max,
            )
            self.cgroup.apply(only)

    def ended(self) -> None:
        """The first process is gone: hold nothing that keeps its file system busy. Idempotent."""
        if self.root is not None:
            self.root.close()

    def _set_oom_score(self) -> None:
        # From within a user namespace of its own the process may not.
        with suppress(OSError):
            score = str(self.spec.security.oom_score_adj)
            paths.write_text(f"/proc/{self.process.pid}/oom_score_adj", score)

    def state(self) -> ContainerState:
        """For a daemon that was restarted."""
        known = {"created": "created", "starting": "created", "running": "running"}
        status = known.get(self.status, "stopped")
        return ContainerState(
            id=self.spec.id,
            status=status,  # type: ignore[arg-type]
            exit=self.process.exit,
            streams=self.spec.streams,
        )

    def release(self) -> bool:
        """Undo :meth:`prepare`, once the process is gone. False when processes are still dying."""
        # A process that lives keeps mounts busy, and so does a descriptor; an overlay keeps its layers so.
        if not self.cgroup.remove():
            return False
        self.ended()
        self.process.close()
        self._sockets.release(self.spec.id)
        if self.pid_namespace >= 0:
            os.close(self.pid_namespace)
            self.pid_namespace = -1
        while self._mounted:
            with suppress(OSError):
                syscalls.umount(self._mounted.pop(), syscalls.MNT_DETACH)
        self.stuck = self._disks.release(self.spec.id)
        # Mount points only, which are empty: were one still mounted, what is in it is not ours to remove.
        with suppress(OSError):
            for name in os.listdir(self._directory):
                with suppress(OSError):
                    os.rmdir(f"{self._directory}/{name}")
            os.rmdir(self._directory)
        return True

    def _mount_root(self, share: Callable[[], str]) -> None:
        spec = self.spec
        target = f"{self._directory}/root"
        if not spec.root:
            self._overlay(target, self._mapped(self.lower(spec.disks.root)), self._scratch())
            return
        directory = f"{share()}/{spec.root}"
        if spec.security.read_only_root:
            # The mount points that are made in it are not for the host's own directory.
            self._overlay(target, [directory], self._scratch())
            return
        try:
            syscalls.mount(directory, target, "", syscalls.MS_BIND | syscalls.MS_REC)
        except OSError as error:
            raise Refused("internal", f"cannot mount the root directory: {error.strerror}") from error
        self._mounted.append(target)

    def lower(self, disks: tuple[PluggedDisk, ...]) -> list[str]:
        """Directories of all layers, bottom first."""
        found: list[str] = []
        for disk in disks:
            found += self._disks.mount(disk, self.spec.id).directories
        return found

    def _mapped(self, layers: list[str]) -> list[str]:
        """The layers as a user namespace's own root sees them, when there is one."""
        namespaces = self.spec.namespaces
        if not namespaces.maps_users:
            return layers
        found = []
        for number, layer in enumerate(layers):
            target = f"{self._directory}/mapped-{number}"
            self._id_maps.mapped(layer, target, namespaces)
            self._mounted.append(target)
            found.append(target)
        return found

    def _scratch(self) -> str:
        scratch = self.spec.disks.scratch
        if scratch is None:
            base = f"{self._directory}/scratch"
            os.makedirs(base)
            syscalls.mount("scratch", base, "tmpfs", 0, "mode=755")
            self._mounted.append(base)
        else:
            (base,) = self._disks.mount(scratch, self.spec.id, writable=True).directories
        lay_out(base)
        self._upper = f"{base}/upper"
        return base

    def _overlay(self, target: str, lower: list[str], upper: str) -> None:
        # The root directory itself is the upper one; it shall look like the topmost layer's.
        status = os.stat(lower[-1])
        os.chown(f"{upper}/upper", status.st_uid, status.st_gid)
        os.chmod(f"{upper}/upper", stat.S_IMODE(status.st_mode))
        self._layers = tuple(reversed(lower))
        options = f"lowerdir={':'.join(self._layers)},upperdir={upper}/upper,workdir={upper}/work,volatile"
        if len(options) > 4095:
            raise Refused("failed_precondition", f"{len(lower)} layers are more than one overlay can have")
        try:
            syscalls.mount("overlay", target, "overlay", 0, options)
        except OSError as error:
            raise Refused("internal", f"cannot mount the root file system: {error.strerror}") from error
        self._mounted.append(target)

    def _device(self, device: GuestDevice) -> GuestDevice:
        """With the node of the disk, where it is one."""
        for disk in self.spec.disks.devices:
            if disk.id == device.disk:
                return replace(device, source=self._disks.take(disk, self.spec.id))
        return device

    def _source(self, number: int, mount: GuestMount, share: Callable[[], str]) -> VolumeSource:
        if mount.kind == "share":
            return VolumeSource(mount, share(), mount.source)
        if mount.kind == "tmpfs":
            return VolumeSource(mount, "", "")
        if mount.kind == "socket":
            return VolumeSource(mount, paths.SOCKETS, self._sockets.listen(self.spec.id, mount))
        if mount.kind == "volume":
            return VolumeSource(mount, self._volumes.place(mount.volume), mount.source)
        volume = next(disk for disk in self.spec.disks.volumes if disk.id == mount.volume)
        layers = self._disks.mount(volume, self.spec.id).directories
        if len(layers) == 1:
            return VolumeSource(mount, layers[0], mount.source)
        target = f"{self._directory}/image-{number}"
        os.makedirs(target)
        syscalls.mount(
            "overlay", target, "overlay", syscalls.MS_RDONLY, f"lowerdir={':'.join(reversed(layers))}"
        )
        self._mounted.append(target)
        return VolumeSource(mount, target, mount.source)


def lay_out(base: str) -> None:
    """Make the directories of an overlay below ``base``, which a disk that is made for one has already."""
    os.makedirs(f"{base}/upper", 0o755, exist_ok=True)
    os.makedirs(f"{base}/work", 0o755, exist_ok=True)


def _own_files() -> tuple[tuple[str, str], ...]:
    """Files of the pod that every container gets to see."""
    found = []
    for name in ("hosts", "resolv.conf", "hostname"):
        if os.path.exists(f"{paths.ETC}/{name}"):
            found.append((f"{paths.ETC}/{name}", f"/etc/{name}"))
    return tuple(found)


def _open_namespace(pid: int, kind: str) -> int:
    try:
        return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused("failed_precondition", f"the container to join has ended: {error.strerror}") from error


def _held(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd
