"""A container: its disks and mounts, its cgroup, its first process, and the way back from all of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from orlop.guest import cgroup, inside, paths, spawn, syscalls
from orlop.guest.cgroup import Cgroup
from orlop.guest.disks import Disks
from orlop.guest.mounts import Source, View
from orlop.guest.process import Process, Streaming
from orlop.wire.messages import Refused
from orlop.wire.values import Container, ContainerState, Disk, Mount, Resources

UNMOUNT_RETRY = 0.005


class Entry:
    """What the agent holds of a container. ``status``: creating, created, running, stopped, deleting."""

    def __init__(self, spec: Container, streaming: Streaming, disks: Disks) -> None:
        self.spec = spec
        self.status = "creating"
        self.process = Process(streaming, spec.streams, tty=spec.tty)
        self.cgroup = Cgroup(f"{cgroup.POD.path}/{spec.id}")
        self.pid_namespace = -1
        self.oom_kills = 0
        self.watch = -1
        self.env: dict[bytes, bytes] = {}
        self._streaming = streaming
        self._disks = disks
        self._directory = f"{paths.CONTAINERS}/{spec.id}"
        self._mounted: list[str] = []

    @property
    def upper(self) -> str:
        """The directory that holds what the container wrote; "" before it is prepared."""
        return self._upper

    _upper = ""

    def prepare(self, share: Callable[[], str]) -> View:
        """Mount the root file system and make the cgroup. ``share`` mounts the host's share on demand."""
        spec = self.spec
        os.makedirs(f"{self._directory}/root")
        lower = self._lower(spec.lower)
        upper = self._scratch()
        self._overlay(f"{self._directory}/root", lower, upper)
        self.cgroup.create()
        small = 0 < spec.resources.memory_max < cgroup.SMALL_MEMORY
        self.cgroup.apply(spec.resources, memory=not small)
        sources = tuple(self._source(number, mount, share) for number, mount in enumerate(spec.mounts))
        return View(
            root=f"{self._directory}/root",
            security=spec.security,
            sources=tuple(sorted(sources, key=lambda source: source.mount.target.rstrip("/").count("/"))),
            files=_own_files(),
            devices=spec.devices,
            own_user_namespace=bool(spec.namespaces.uid_mappings),
        )

    def spawn(self, view: View, pid_namespace: int) -> None:
        """Fork the first process; it reports through ``process`` and waits."""
        spec = self.spec
        self.env = {key.encode(): value for key, value in spec.env}
        if spec.hostname:
            self.env.setdefault(b"HOSTNAME", spec.hostname.encode())
        program = inside.Program(
            args=spec.args, env=self.env, cwd=spec.cwd, security=spec.security, tty=spec.tty
        )
        flags = syscalls.CLONE_NEWPID if pid_namespace < 0 else 0
        if view.own_user_namespace:
            flags |= syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS
        directory = self.cgroup.open()
        try:
            self.process.spawn(
                lambda stdio: spawn.spawn(
                    lambda control: inside.run_container(view, program, control),
                    stdio=stdio,
                    flags=flags,
                    cgroup=directory,
                    pid_namespace=pid_namespace,
                )
            )
        finally:
            os.close(directory)
        child = self.process.child
        assert child is not None
        self.pid_namespace = os.open(f"/proc/{child.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        if view.own_user_namespace:
            write_id_maps(child.pid, spec)
            child.go()

    def started(self) -> None:
        """Exec succeeded: a memory limit that had to wait takes effect."""
        if 0 < self.spec.resources.memory_max < cgroup.SMALL_MEMORY:
            only = Resources(
                memory_max=self.spec.resources.memory_max,
                memory_swap_max=self.spec.resources.memory_swap_max,
            )
            self.cgroup.apply(only)

    def state(self) -> ContainerState:
        """For a daemon that was restarted."""
        status = {"created": "created", "running": "running"}.get(self.status, "stopped")
        return ContainerState(
            id=self.spec.id,
            status=status,  # type: ignore[arg-type]
            pid=self.process.pid,
            started_at=self.process.started_at,
            exit=self.process.exit,
            tty=self.spec.tty,
            streams=self.spec.streams,
        )

    def release(self) -> bool:
        """Undo :meth:`prepare`, once the process is gone. False when processes are still dying."""
        if not self.cgroup.remove():
            return False
        self.process.close()
        if self.pid_namespace >= 0:
            os.close(self.pid_namespace)
            self.pid_namespace = -1
        while self._mounted:
            with suppress(OSError):
                syscalls.umount(self._mounted.pop(), syscalls.MNT_DETACH)
        self._remove_scratch()
        self._disks.release(self.spec.id)
        for directory, _, _ in os.walk(self._directory, topdown=False):
            with suppress(OSError):
                os.rmdir(directory)
        return True

    def _lower(self, disks: tuple[Disk, ...]) -> list[str]:
        """Directories of all layers, bottom first."""
        found: list[str] = []
        for disk in disks:
            found += self._disks.mount(disk, self.spec.id).directories
        return found

    def _scratch(self) -> str:
        scratch = self.spec.scratch
        if scratch.disk is None:
            base = f"{self._directory}/scratch"
            os.makedirs(base)
            options = f"mode=755,size={scratch.size}" if scratch.size else "mode=755"
            syscalls.mount("scratch", base, "tmpfs", 0, options)
            self._mounted.append(base)
        else:
            base = self._disks.mount(scratch.disk, self.spec.id, writable=True).directories[0]
        if scratch.directory:
            base = f"{base}/{scratch.directory}"
        os.makedirs(f"{base}/upper", 0o755, exist_ok=True)
        os.makedirs(f"{base}/work", 0o755, exist_ok=True)
        self._upper = f"{base}/upper"
        return base

    def _overlay(self, target: str, lower: list[str], upper: str) -> None:
        layers = ":".join(reversed(lower))
        options = f"lowerdir={layers},upperdir={upper}/upper,workdir={upper}/work,volatile"
        if len(options) > 4095:
            raise Refused("failed_precondition", f"{len(lower)} layers are more than one overlay can have")
        try:
            syscalls.mount("overlay", target, "overlay", 0, options)
        except OSError as error:
            raise Refused("internal", f"cannot mount the root file system: {error.strerror}") from error
        self._mounted.append(target)

    def _source(self, number: int, mount: Mount, share: Callable[[], str]) -> Source:
        if mount.kind == "share":
            return Source(mount, share(), mount.source)
        if mount.kind == "guest":
            return Source(mount, "/", mount.source)
        if mount.kind == "tmpfs":
            return Source(mount, "", "")
        assert mount.disk is not None
        layers = self._disks.mount(mount.disk, self.spec.id).directories
        if len(layers) == 1:
            return Source(mount, layers[0], mount.source)
        target = f"{self._directory}/image-{number}"
        os.makedirs(target)
        syscalls.mount(
            "overlay", target, "overlay", syscalls.MS_RDONLY, f"lowerdir={':'.join(reversed(layers))}"
        )
        self._mounted.append(target)
        return Source(mount, target, mount.source)

    def _remove_scratch(self) -> None:
        """A directory on a disk that others use too must go; a disk of its own goes as a whole."""
        scratch = self.spec.scratch
        if scratch.disk is None or not scratch.directory or not self._upper:
            return
        mounted = self._disks.get(scratch.disk)
        if mounted is not None and mounted.users - {self.spec.id}:
            import shutil

            shutil.rmtree(os.path.dirname(self._upper), ignore_errors=True)


def _own_files() -> tuple[tuple[str, str], ...]:
    """Files of the pod that every container gets to see."""
    found = []
    for name in ("hosts", "resolv.conf", "hostname"):
        if os.path.exists(f"{paths.ETC}/{name}"):
            found.append((f"{paths.ETC}/{name}", f"/etc/{name}"))
    if os.path.exists(paths.BOOT_ID):
        found.append((paths.BOOT_ID, "/proc/sys/kernel/random/boot_id"))
    return tuple(found)


def write_id_maps(pid: int, spec: Container) -> None:
    """Fill in the user namespace of ``pid``. user_namespaces(7)."""
    for name, mappings in (
        ("uid_map", spec.namespaces.uid_mappings),
        ("gid_map", spec.namespaces.gid_mappings),
    ):
        text = "".join(f"{m.inner} {m.outer} {m.length}\n" for m in mappings)
        try:
            paths.write_text(f"/proc/{pid}/{name}", text)
        except OSError as error:
            raise Refused("invalid", f"the id mappings are not valid ({name}): {error.strerror}") from error
