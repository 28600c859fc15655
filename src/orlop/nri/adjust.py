"""What a plug-in wants of a container that is being made, applied to its specification."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from orlop.errors import FailedPrecondition, InvalidArgument, OrlopError
from orlop.nri import limits
from orlop.nri.api import nri_v1alpha1_pb2 as pb
from orlop.nri.claims import Claims
from orlop.sandbox.spec import (
    MOUNT_OPTIONS,
    ContainerSpec,
    Device,
    Hook,
    Mount,
    MountOption,
    Namespace,
    Propagation,
    Rlimit,
    Seccomp,
    SeccompMode,
    Tmpfs,
)

_HOOKS = {
    "prestart": "prestart",
    "create_runtime": "createRuntime",
    "create_container": "createContainer",
    "start_container": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}
_NAMESPACES = frozenset({"cgroup", "ipc", "mount", "network", "pid", "user", "uts"})
_PROPAGATIONS = {
    "private": Propagation.PRIVATE,
    "rprivate": Propagation.PRIVATE,
    "slave": Propagation.HOST_TO_CONTAINER,
    "rslave": Propagation.HOST_TO_CONTAINER,
    "shared": Propagation.BIDIRECTIONAL,
    "rshared": Propagation.BIDIRECTIONAL,
}
_PLAIN = frozenset({"bind", "rbind", "rw", "ro", "rro", "exec", "suid", "dev", "relatime", "strictatime"})
"""Options that are said otherwise, or are so anyway."""
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_INFINITY = (1 << 63) - 1


class Adjuster:
    """Applies one plug-in's adjustment after the other to one container; conflicts are errors.

    A key that begins with "-" takes away what has the rest as its name.
    """

    def __init__(self, spec: ContainerSpec) -> None:
        self.spec = spec
        self.claims = Claims()
        self.cdi_devices: tuple[str, ...] = ()

    def apply(self, asked: pb.ContainerAdjustment, plugin: str) -> None:
        """Change :attr:`spec`. Blocks on the disk. Raises errors that name the plug-in."""
        before = self.spec
        try:
            _Step(self, plugin).apply(asked)
        except OrlopError as error:
            self.spec = before
            if plugin in str(error):
                raise
            raise type(error)(f"plug-in {plugin}: {error}") from error
        except ValueError as error:
            self.spec = before
            raise InvalidArgument(f"plug-in {plugin}: {error}") from error


class _Step:
    def __init__(self, adjuster: Adjuster, plugin: str) -> None:
        self._adjuster = adjuster
        self._plugin = plugin

    def apply(self, asked: pb.ContainerAdjustment) -> None:
        self._refuse_others(asked.linux)
        spec = self._adjuster.spec
        self._set(annotations=self._mapping(spec.annotations, asked.annotations, pb.Annotations))
        self._environment(asked.env)
        self._args(list(asked.args))
        self._mounts(asked.mounts)
        self._devices(asked.linux.devices)
        self._rlimits(asked.rlimits)
        self._hooks(asked.hooks)
        self._linux(asked.linux)
        for device in asked.CDI_devices:
            self._claim(pb.CdiDevices, device.name)
            self._adjuster.cdi_devices += (device.name,)

    def _set(self, **changes: Any) -> None:
        self._adjuster.spec = msgspec.structs.replace(self._adjuster.spec, **changes)

    def _set_on_host(self, **changes: Any) -> None:
        self._set(on_host=msgspec.structs.replace(self._adjuster.spec.on_host, **changes))

    def _claim(self, field: pb.Field.ValueType, key: str = "") -> None:
        self._adjuster.claims.claim(self._adjuster.spec.id, field, self._plugin, key)

    def _clear(self, field: pb.Field.ValueType, key: str = "") -> None:
        self._adjuster.claims.clear(self._adjuster.spec.id, field, key)

    def _taken_away(self, names: Iterable[str], field: pb.Field.ValueType) -> set[str]:
        gone = {name[1:] for name in names if name.startswith("-")}
        for name in gone:
            self._clear(field, name)
        return gone

    def _mapping(self, old: dict[str, str], asked: Any, field: pb.Field.ValueType) -> dict[str, str]:
        gone = self._taken_away(asked, field)
        found = {key: value for key, value in old.items() if key not in gone}
        for key, value in asked.items():
            if not key.startswith("-"):
                self._claim(field, key)
                found[key] = value
        return found

    def _environment(self, asked: Iterable[pb.KeyValue]) -> None:
        gone = self._taken_away((item.key for item in asked), pb.Env)
        found = {name: value for name, value in self._adjuster.spec.env if name not in gone}
        for item in asked:
            if item.key.startswith("-"):
                continue
            if not item.key or "=" in item.key or "\0" in item.key + item.value:
                raise InvalidArgument(f"{item.key[:80]!r} is not the name of a variable")
            self._claim(pb.Env, item.key)
            found[item.key] = item.value.encode()
        self._set(env=tuple(found.items()))

    def _args(self, asked: list[str]) -> None:
        if not asked:
            return
        if asked[0] == "":
            self._clear(pb.Args)
            asked = asked[1:]
        if not asked or any("\0" in one for one in asked):
            raise InvalidArgument("a command needs a program, and no NUL bytes")
        self._claim(pb.Args)
        self._set(args=tuple(asked))

    def _mounts(self, asked: Iterable[pb.Mount]) -> None:
        names = [item.destination for item in asked]
        gone = self._taken_away(names, pb.Mounts) | set(names)
        kept = [one for one in self._adjuster.spec.mounts if one.container_path not in gone]
        for item in asked:
            if not item.destination.startswith("-"):
                self._claim(pb.Mounts, item.destination)
                kept.append(_mount(item))
        self._set(mounts=tuple(kept))

    def _devices(self, asked: Iterable[pb.LinuxDevice]) -> None:
        names = [item.path for item in asked]
        gone = self._taken_away(names, pb.Devices) | set(names)
        kept = [one for one in self._adjuster.spec.devices if one.container_path not in gone]
        for item in asked:
            if not item.path.startswith("-"):
                self._claim(pb.Devices, item.path)
                kept.append(_device(item))
        self._set(devices=tuple(kept))

    def _rlimits(self, asked: Iterable[pb.POSIXRlimit]) -> None:
        found = {limit.name: limit for limit in self._adjuster.spec.rlimits}
        for item in asked:
            name = item.type.upper().removeprefix("RLIMIT_")
            self._claim(pb.Rlimits, name)
            soft, hard = (value if value <= _INFINITY else -1 for value in (item.soft, item.hard))
            found[name] = Rlimit(name=name, soft=soft, hard=hard)
        self._set(rlimits=tuple(found.values()))

    def _hooks(self, asked: pb.Hooks) -> None:
        """Hooks do not exclude one another: they run in the order of the plug-ins."""
        found = [
            Hook(
                moment=moment,
                path=hook.path,
                args=tuple(hook.args),
                env=tuple(hook.env),
                timeout=max(hook.timeout.value, 0),
            )
            for name, moment in _HOOKS.items()
            for hook in getattr(asked, name)
        ]
        for hook in found:
            if not posixpath.isabs(hook.path):
                raise InvalidArgument(f"the path {hook.path[:80]!r} of a hook is not absolute")
        if found:
            self._set_on_host(hooks=(*self._adjuster.spec.on_host.hooks, *found))

    def _linux(self, asked: pb.LinuxContainerAdjustment) -> None:
        spec = self._adjuster.spec
        resources = limits.combined(
            spec.resources, asked.resources, self._adjuster.claims, container=spec.id, plugin=self._plugin
        )
        if asked.HasField("oom_score_adj"):
            if not -1000 <= asked.oom_score_adj.value <= 1000:
                raise InvalidArgument(f"the OOM score {asked.oom_score_adj.value} is not -1000 to 1000")
            self._claim(pb.OomScoreAdj)
            resources = msgspec.structs.replace(resources, oom_score_adj=asked.oom_score_adj.value)
        self._set(resources=resources)
        if asked.cgroups_path:
            self._claim(pb.CgroupsPath)
            self._set_on_host(cgroup=asked.cgroups_path)
        if asked.sysctl:
            self._set_on_host(sysctls=self._mapping(spec.on_host.sysctls, asked.sysctl, pb.Sysctl))
        if asked.HasField("seccomp_policy"):
            self._claim(pb.SeccompPolicy)
            self._set(security=msgspec.structs.replace(spec.security, seccomp=_seccomp(asked.seccomp_policy)))
        if asked.namespaces:
            self._set_on_host(namespaces=tuple(self._namespaces(asked.namespaces)))

    def _namespaces(self, asked: Iterable[pb.LinuxNamespace]) -> Iterable[Namespace]:
        found = {one.kind: one for one in self._adjuster.spec.on_host.namespaces}
        for item in asked:
            kind = item.type.removeprefix("-")
            if kind not in _NAMESPACES:
                raise InvalidArgument(f"there is no namespace {kind[:80]!r}")
            if item.path and not posixpath.isabs(item.path):
                raise InvalidArgument(f"the path {item.path[:80]!r} of a namespace is not absolute")
            self._claim(pb.Namespace, kind)
            found[kind] = Namespace(kind=kind, path=item.path, of_host=item.type != kind)
        return found.values()

    def _refuse_others(self, asked: pb.LinuxContainerAdjustment) -> None:
        others = {
            "an I/O priority": asked.HasField("io_priority"),
            "host network devices": len(asked.net_devices) > 0,
            "a scheduler": asked.HasField("scheduler"),
            "Intel RDT": asked.HasField("rdt"),
            "a memory policy": asked.HasField("memory_policy"),
        }
        if wanted := [what for what, there in others.items() if there]:
            raise FailedPrecondition(f"it asks for {', '.join(wanted)}, which Orlop does not offer")


def _mount(asked: pb.Mount) -> Mount:
    options = set(asked.options)
    flags: tuple[MountOption, ...] = tuple(one for one in MOUNT_OPTIONS if one in options)
    if not posixpath.isabs(asked.destination):
        raise InvalidArgument(f"the mount {asked.destination[:80]!r} is not at an absolute path")
    read_only = bool(options & {"ro", "rro"})
    if asked.type == "tmpfs":
        tmpfs = _tmpfs(asked, options - _PLAIN - set(flags))
        return Mount(container_path=asked.destination, tmpfs=tmpfs, read_only=read_only, options=flags)
    if asked.type not in ("", "bind", "none", "rbind"):
        raise FailedPrecondition(
            f"the mount {asked.destination} is a {asked.type[:80]!r}, and can be a bind or a tmpfs"
        )
    propagations = [_PROPAGATIONS[one] for one in asked.options if one in _PROPAGATIONS]
    if strange := sorted(options - _PLAIN - set(flags) - _PROPAGATIONS.keys()):
        raise FailedPrecondition(f"the mount {asked.destination} has the option {strange[0][:80]!r}")
    source = Path(asked.source)
    if not source.is_absolute():
        raise InvalidArgument(
            f"the source {asked.source[:80]!r} of the mount {asked.destination} is relative"
        )
    try:
        host_path = os.fspath(source.resolve(strict=True))
    except (OSError, RuntimeError) as error:
        raise FailedPrecondition(f"the mount {asked.destination} of {asked.source}: {error}") from error
    return Mount(
        container_path=asked.destination,
        host_path=host_path,
        read_only=read_only,
        recursive_read_only="rro" in options,
        propagation=propagations[-1] if propagations else Propagation.PRIVATE,
        options=flags,
    )


def _tmpfs(asked: pb.Mount, options: set[str]) -> Tmpfs:
    size, mode = 0, 0o1777
    for option in options:
        key, _, value = option.partition("=")
        number, unit = value.rstrip("kmgKMG"), value.lstrip("0123456789").lower()
        if key == "size" and number.isdecimal() and unit in _SIZES:
            size = int(number) * _SIZES[unit]
        elif key == "mode" and value and set(value) <= set("01234567"):
            mode = int(value, 8)
        else:
            raise FailedPrecondition(f"the tmpfs {asked.destination} has the option {option[:80]!r}")
    return Tmpfs(size=size, mode=mode)


def _device(asked: pb.LinuxDevice) -> Device:
    """The host's node of that number, under the name that the plug-in has for it."""
    if asked.type not in ("b", "c", "u") or not posixpath.isabs(asked.path):
        raise FailedPrecondition(
            f"the device {asked.path[:80]!r} of type {asked.type[:8]!r} is no such device"
        )
    wanted = os.makedev(asked.major, asked.minor)
    kind = "block" if asked.type == "b" else "char"
    for path in (Path(asked.path), *_named(kind, asked.major, asked.minor)):
        try:
            place = path.resolve(strict=True)
            found = place.stat()
        except (OSError, RuntimeError):
            continue
        right = stat.S_ISBLK(found.st_mode) if kind == "block" else stat.S_ISCHR(found.st_mode)
        if right and found.st_rdev == wanted:
            return Device(
                host_path=os.fspath(place),
                container_path=asked.path,
                mode=_other(asked, "file_mode", stat.S_IMODE(found.st_mode)),
                uid=_other(asked, "uid", found.st_uid),
                gid=_other(asked, "gid", found.st_gid),
            )
    raise FailedPrecondition(
        f"this host has no node for the {kind} device {asked.major}:{asked.minor} ({asked.path})"
    )


def _named(kind: str, major: int, minor: int) -> Iterator[Path]:
    """What the kernel calls a device: udev(7) makes nodes of these names."""
    try:
        text = Path(f"/sys/dev/{kind}/{major}:{minor}/uevent").read_text(encoding="ascii", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        if line.startswith("DEVNAME="):
            yield Path("/dev") / line.removeprefix("DEVNAME=")


def _other(asked: pb.LinuxDevice, name: str, own: int) -> int | None:
    """What the plug-in wants, where that is not what the node has."""
    if not asked.HasField(name):  # type: ignore[arg-type]
        return None
    value: int = getattr(asked, name).value
    return None if value == own else value


def _seccomp(asked: pb.LinuxSeccomp) -> Seccomp:
    if asked.listener_path:
        raise FailedPrecondition("it asks for a seccomp filter with a listener, which Orlop does not offer")
    document: dict[str, Any] = {
        "defaultAction": asked.default_action,
        "architectures": list(asked.architectures),
        "flags": list(asked.flags),
        "syscalls": [
            {
                "names": list(rule.names),
                "action": rule.action,
                **({"errnoRet": rule.errno_ret.value} if rule.HasField("errno_ret") else {}),
                "args": [
                    {"index": one.index, "value": one.value, "valueTwo": one.value_two, "op": one.op}
                    for one in rule.args
                ],
            }
            for rule in asked.syscalls
        ],
    }
    if asked.HasField("default_errno"):
        document["defaultErrnoRet"] = asked.default_errno.value
    return Seccomp(mode=SeccompMode.GIVEN, profile=msgspec.json.encode(document).decode())
