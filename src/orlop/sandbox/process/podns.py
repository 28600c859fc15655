"""What the containers of a pod share: pinned namespaces, files in /etc, /dev/shm, sysctls.

Network, IPC and UTS namespaces need no process; they are pinned by bind mounts. A PID namespace
that is shared needs a first process, and so does a user namespace until it is pinned: the holder,
which sleeps. There is no pause container.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orlop.errors import FailedPrecondition, InvalidArgument, NotUndone
from orlop.host import mounts, namespaces, process, tasks, threads
from orlop.linux import syscalls as sys
from orlop.sandbox.process import volumes
from orlop.sandbox.process.layout import KnownProcess, PodPaths
from orlop.sandbox.spec import Dns, IdMapping, NamespaceMode, PodSpec

SHM_SIZE = 64 << 20
_HOLDER_TIME = 20.0
_IPC_SYSCTLS = ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")
_DEFAULT_SYSCTLS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}
_LOCAL_HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
_FOREVER = "2147483647"
_PINNED = ("net", "uts", "ipc", "user", "pid")


def kinds(spec: PodSpec) -> list[str]:
    """The namespaces of the pod's own that are pinned without a process."""
    found = []
    if spec.namespaces.network is not NamespaceMode.NODE:
        found += ["net", "uts"]
    if spec.namespaces.ipc is not NamespaceMode.NODE:
        found.append("ipc")
    return found


def sysctl_namespace(name: str) -> str:
    """The namespace that a sysctl belongs to, or "" for one that is the node's."""
    plain = name.replace("/", ".")
    if plain.startswith("net."):
        return "net"
    return "ipc" if plain.startswith(_IPC_SYSCTLS) else ""


def check_sysctls(spec: PodSpec) -> None:
    """Refuse sysctls that would change the node. Raises InvalidArgument naming the first."""
    own = kinds(spec)
    for name in spec.sysctls:
        if sysctl_namespace(name) not in own:
            raise InvalidArgument(
                f"pod {spec.namespace}/{spec.name}: sysctl {name} is not one of a namespace of the pod's own"
            )


@dataclass(frozen=True)
class Holder:
    """The first process of a shared PID namespace, and the child of ours to wait for when it has ended."""

    first: KnownProcess
    child: process.Detached


async def make(spec: PodSpec, paths: PodPaths, pause: Path) -> Holder | None:
    """Make and pin the namespaces; returns the holder if one stays. Raises OSError, FailedPrecondition.

    ``pause`` is the program that sleeps; it works in the pod's directory, by which it is found if
    the daemon dies before it is recorded. The caller removes what is left after a failure.
    """
    own = kinds(spec)
    if spec.netns:
        # From here on it is the pod's as any other; what is unpinned at the end is this pin alone.
        await namespaces.pin(Path(spec.netns), paths.namespace("net"), "net")
        own.remove("net")
    with_pid = spec.namespaces.pid is NamespaceMode.POD
    if with_pid or spec.namespaces.user is NamespaceMode.POD:
        paths.holder.touch()
    if spec.namespaces.user is NamespaceMode.POD:
        return await _hold(spec, paths, own, pause, with_pid=with_pid)
    if with_pid:
        own.append("pid")
    if not own:
        return None
    targets = {kind: paths.namespace(kind) for kind in own}
    child = await namespaces.create(targets, hostname=spec.hostname, first=_first(pause), cwd=paths.state)
    return None if child is None else Holder(KnownProcess(pid=child.pid, start_time=child.start_time), child)


def _first(pause: Path) -> list[str]:
    """The first process of a PID namespace. It waits for nobody: the kernel is to reap what it inherits."""
    return ["env", "--ignore-signal=CHLD", os.fspath(pause), _FOREVER]


async def _hold(
    spec: PodSpec, paths: PodPaths, own: list[str], pause: Path, *, with_pid: bool
) -> Holder | None:
    """The same inside a user namespace, which only a process without threads can make."""
    reading, ready = os.pipe2(os.O_CLOEXEC)
    waiting, go = os.pipe2(os.O_CLOEXEC)
    command = ["unshare", "--user", "--keep-caps", *(f"--{kind}" for kind in own)]
    if with_pid:
        command += ["--pid", "--fork", "--kill-child"]
    become = f"exec setpriv --reuid 0 --regid 0 --clear-groups {shlex.join(_first(pause))}"
    command += ["--", "sh", "-c", f"echo; read line; {become}"]
    holder: process.Detached | None = None
    try:
        holder = await process.spawn_detached(command, cwd=paths.state, stdin=waiting, stdout=ready)
        os.close(ready)
        ready = -1
        if not await _line(reading):
            raise FailedPrecondition("a user namespace for the pod cannot be made: unshare failed")
        inner = _child_of(holder.pid) if with_pid else holder.pid
        _map(inner, "uid", spec.namespaces.uid_mappings)
        _map(inner, "gid", spec.namespaces.gid_mappings)
        await threads.call(_pin, inner, [*own, "user", *(["pid"] if with_pid else [])], paths)
        os.write(go, b"\n")
        await namespaces.prepare({kind: paths.namespace(kind) for kind in own}, hostname=spec.hostname)
        if with_pid:
            first = KnownProcess(pid=inner, start_time=process.process_start_time(inner))
            staying, holder = Holder(first, holder), None
            return staying
        return None
    finally:
        for descriptor in (reading, ready, waiting, go):
            if descriptor >= 0:
                os.close(descriptor)
        if holder is not None:
            await tasks.uncancelled(end(holder))


async def end(holder: process.Detached) -> None:
    """End a holder and reap it. Idempotent."""
    await process.kill_pid(holder.pid, holder.start_time)
    await holder.wait()


async def _line(descriptor: int) -> bool:
    try:
        async with asyncio.timeout(_HOLDER_TIME):
            await process.readable(descriptor)
    except TimeoutError:
        return False
    return bool(os.read(descriptor, 1))


def _child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    if not children:
        raise FailedPrecondition("namespaces for the pod cannot be made: the holder ended at once")
    return int(children[0])


def _map(pid: int, kind: str, mappings: tuple[IdMapping, ...]) -> None:
    lines = "".join(f"{m.container_id} {m.host_id} {m.length}\n" for m in mappings)
    try:
        Path(f"/proc/{pid}/{kind}_map").write_text(lines, encoding="ascii")
    except OSError as error:
        raise InvalidArgument(f"user namespace: the {kind} mapping is refused: {error.strerror}") from error


def _pin(pid: int, pinned: list[str], paths: PodPaths) -> None:
    for kind in pinned:
        path = paths.namespace(kind)
        path.touch(mode=0o444)
        mounts.mount(f"/proc/{pid}/ns/{kind}", path, "", flags=sys.MS_BIND)


async def set_sysctls(spec: PodSpec, paths: PodPaths) -> None:
    """Write the pod's sysctls in its own namespaces. Raises InvalidArgument naming the first that fails."""
    own = {kind: paths.namespace(kind) for kind in kinds(spec) if kind != "uts"}
    if not own:
        return

    def write() -> None:
        if "net" in own and not spec.netns:
            for name, value in _DEFAULT_SYSCTLS.items():
                with suppress(OSError):
                    _write_sysctl(name, value)
        for name, value in spec.sysctls.items():
            try:
                _write_sysctl(name, value)
            except OSError as error:
                raise InvalidArgument(
                    f"pod {spec.namespace}/{spec.name}: sysctl {name}={value}: {error.strerror}"
                ) from error

    await namespaces.within(own, write)


def _write_sysctl(name: str, value: str) -> None:
    # A dot separates, unless slashes do; what is not the separator belongs to a name.
    if name.find("/") != -1 and (name.find(".") == -1 or name.find("/") < name.find(".")):
        path = name
    else:
        path = name.translate(str.maketrans("./", "/."))
    if ".." in path.split("/"):
        raise OSError(22, "not the name of a sysctl")
    descriptor = os.open(f"/proc/sys/{path}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def write_files(spec: PodSpec, paths: PodPaths, addresses: tuple[str, ...]) -> None:
    """The pod's /etc/hosts, /etc/hostname and /etc/resolv.conf. Raises OSError."""
    on_host = spec.namespaces.network is NamespaceMode.NODE
    hostname = os.uname().nodename if on_host or not spec.hostname else spec.hostname
    if on_host:
        hosts = _read("/etc/hosts") or _LOCAL_HOSTS
    else:
        hosts = _LOCAL_HOSTS + "".join(f"{address}\t{hostname}\n" for address in addresses)
    texts = {"hosts": hosts, "hostname": hostname + "\n", "resolv.conf": resolv_conf(spec.dns)}
    for name, text in texts.items():
        (paths.etc / name).write_text(text, encoding="utf-8")


def resolv_conf(dns: Dns) -> str:
    """resolv.conf(5); nothing asked for means the node's own."""
    if not (dns.servers or dns.searches or dns.options):
        return _read("/etc/resolv.conf")
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "\n".join(lines) + "\n"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def share_shm(spec: PodSpec, paths: PodPaths) -> None:
    """Mount the pod's /dev/shm unless it has the host's. Raises OSError."""
    if spec.namespaces.ipc is not NamespaceMode.NODE:
        volumes.mount_shm(paths, SHM_SIZE)


async def release(paths: PodPaths, holder: KnownProcess, *, attached: bool = False) -> None:
    """End the holder, unpin the namespaces, unmount /dev/shm. Idempotent. Raises NotUndone.

    A pod that could not be taken off its network is ``attached`` still, and keeps that namespace: a plug-in
    that is asked again looks there for what it made, and leaves on the host what it does not find.
    """
    undo = tasks.Undo("what a pod's containers share")
    holders = [holder] if holder.pid else await threads.call(_unrecorded, paths)
    for found in holders:
        await undo.step(f"process {found.pid}", process.kill_pid(found.pid, found.start_time))
    going = [kind for kind in _PINNED if not (attached and kind == "net")]
    await undo.step("its namespaces", threads.call(_unpin, paths, going))
    undo.finish()


def _unrecorded(paths: PodPaths) -> list[KnownProcess]:
    """Holders that were started just before an earlier daemon died."""
    found = process.working_in(paths.state) if paths.holder.exists() else []
    return [KnownProcess(pid=pid, start_time=process.process_start_time(pid)) for pid in found]


def _unpin(paths: PodPaths, kinds: Iterable[str]) -> None:
    failed = []
    steps = {kind: partial(namespaces.remove, paths.namespace(kind)) for kind in kinds}
    for what, step in {**steps, "/dev/shm": partial(mounts.unmount, paths.shm)}.items():
        try:
            step()
        except OSError as error:
            failed.append(f"{what}: {error}")
    if failed:
        raise NotUndone("; ".join(failed))


def pinned(spec: PodSpec, paths: PodPaths) -> Mapping[str, bool]:
    """Which of the pod's namespaces are still there, after a restart of the daemon."""
    wanted = kinds(spec)
    if spec.namespaces.pid is NamespaceMode.POD:
        wanted.append("pid")
    if spec.namespaces.user is NamespaceMode.POD:
        wanted.append("user")
    return {kind: mounts.is_mounted(paths.namespace(kind)) for kind in wanted}
