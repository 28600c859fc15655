"""A container as a document of the OCI runtime specification (``config.json``)."""

from __future__ import annotations

import os
import resource
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orlop.errors import InvalidArgument
from orlop.host import cgroups
from orlop.linux import limits
from orlop.linux.capabilities import CAPABILITIES
from orlop.linux.users import Identity
from orlop.sandbox import seccomp
from orlop.sandbox.process import devices, selinux, volumes
from orlop.sandbox.process.layout import PodPaths
from orlop.sandbox.spec import ContainerSpec, NamespaceMode, PodSpec, Resources, Rlimit

VERSION = "1.0.2"
_SYS_RESOURCE = 24


@dataclass(frozen=True)
class Inputs:
    """What a document is made of, besides the specifications."""

    pod: PodSpec
    spec: ContainerSpec
    paths: PodPaths
    rootfs: Path
    identity: Identity
    mounts: list[dict[str, Any]]
    cgroup: str
    target_pid: int = 0
    apparmor: str = ""


def document(inputs: Inputs) -> dict[str, Any]:
    """The whole document. Reads a seccomp profile and looks at devices: call it off the event loop.

    Raises InvalidArgument or NotFound naming what cannot be had.
    """
    pod, spec = inputs.pod, inputs.spec
    security = spec.security
    found = devices.collect(spec)
    linux: dict[str, Any] = {
        "namespaces": namespaces(inputs),
        "cgroupsPath": inputs.cgroup,
        "resources": {**resources(spec.resources), "devices": found.rules},
        "devices": found.nodes,
        "maskedPaths": list(security.masked_paths),
        "readonlyPaths": list(security.read_only_paths),
    }
    if propagation := volumes.root_propagation(spec):
        linux["rootfsPropagation"] = propagation
    if security.selinux_label and selinux.enabled():
        linux["mountLabel"] = selinux.file_label(security.selinux_label)
    if pod.namespaces.user is NamespaceMode.POD:
        for name, mappings in (
            ("uidMappings", pod.namespaces.uid_mappings),
            ("gidMappings", pod.namespaces.gid_mappings),
        ):
            linux[name] = [
                {"containerID": m.container_id, "hostID": m.host_id, "size": m.length} for m in mappings
            ]
    if not security.privileged:
        profile = seccomp.oci_seccomp(security.seccomp, capabilities=security.capabilities)
        if profile is not None:
            linux["seccomp"] = profile
    if spec.on_host.sysctls:
        linux["sysctl"] = dict(spec.on_host.sysctls)
    return {
        "ociVersion": VERSION,
        **hooks(spec),
        "process": process(inputs),
        "root": {"path": os.fspath(inputs.rootfs), "readonly": security.read_only_root},
        "mounts": [*volumes.system_mounts(pod, spec, inputs.paths), *inputs.mounts],
        "annotations": dict(spec.annotations),
        "linux": linux,
    }


def hooks(spec: ContainerSpec) -> dict[str, Any]:
    """``hooks`` of the document, if there are any."""
    found: dict[str, list[dict[str, Any]]] = {}
    for hook in spec.on_host.hooks:
        entry: dict[str, Any] = {"path": hook.path, "args": list(hook.args), "env": list(hook.env)}
        if hook.timeout:
            entry["timeout"] = hook.timeout
        found.setdefault(hook.moment, []).append(entry)
    return {"hooks": found} if found else {}


def process(inputs: Inputs) -> dict[str, Any]:
    """The container's first process."""
    spec, security, identity = inputs.spec, inputs.spec.security, inputs.identity
    granted = [f"CAP_{name}" for name in possible_capabilities(security.capabilities)]
    ambient = [name for name in (f"CAP_{name}" for name in security.ambient) if name in granted]
    found: dict[str, Any] = {
        "terminal": spec.tty,
        "args": list(spec.args),
        "env": _environment(spec, identity.home),
        "cwd": spec.cwd,
        "noNewPrivileges": security.no_new_privs,
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.groups)},
        "capabilities": {
            "bounding": granted,
            "effective": granted,
            "permitted": granted,
            "inheritable": ambient,
            "ambient": ambient,
        },
        "oomScoreAdj": possible_oom_score(spec.resources.oom_score_adj),
        "rlimits": [
            {"type": f"RLIMIT_{limit.name}", "soft": _limit(limit.soft), "hard": _limit(limit.hard)}
            for limit in (*spec.rlimits, *default_rlimits(spec.rlimits))
        ],
    }
    if inputs.apparmor:
        found["apparmorProfile"] = inputs.apparmor
    if security.selinux_label and selinux.enabled():
        found["selinuxLabel"] = security.selinux_label
    return found


def default_rlimits(asked: Collection[Rlimit]) -> list[Rlimit]:
    """The usual limits that were not ``asked`` for, or as much of them as this daemon can give."""
    unbounded = bool(_status("CapEff") & 1 << _SYS_RESOURCE)
    found = []
    for name, usual in limits.DEFAULTS:
        if any(limit.name == name for limit in asked):
            continue
        _, own = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        above = own != resource.RLIM_INFINITY and (usual == limits.INFINITY or usual > own)
        value = own if above and not unbounded else usual
        found.append(Rlimit(name=name, soft=value, hard=value))
    return found


def _limit(value: int) -> int:
    """Infinity is the greatest number there, not -1 (getrlimit(2))."""
    return value if value >= 0 else (1 << 64) - 1


def _environment(spec: ContainerSpec, home: str) -> list[str]:
    found = []
    for name, value in spec.env:
        try:
            found.append(f"{name}={value.decode()}")
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"container {spec.name}: variable {name} is not UTF-8, which an OCI runtime cannot be given; "
                "the handler vm can"
            ) from error
    if not any(name == "HOME" for name, _ in spec.env):
        found.append(f"HOME={home}")
    return found


def possible_capabilities(wanted: Collection[str]) -> list[str]:
    """Those of ``wanted`` that this daemon has itself; more it cannot give, as in a container."""
    own = _status("CapBnd")
    return [name for number, name in enumerate(CAPABILITIES) if name in wanted and own & 1 << number]


def _status(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1], 16)


def possible_oom_score(wanted: int) -> int:
    """``wanted``, or as low as this daemon may go: without CAP_SYS_RESOURCE not below its own."""
    if _status("CapEff") & 1 << _SYS_RESOURCE:
        return wanted
    return max(wanted, int(Path("/proc/self/oom_score_adj").read_text(encoding="ascii")))


def namespaces(inputs: Inputs) -> list[dict[str, Any]]:
    """The namespaces to join, to make, or (left out) to share with the host."""
    pod, spec, paths = inputs.pod, inputs.spec, inputs.paths
    found: list[dict[str, Any]] = [{"type": "mount"}]
    if pod.namespaces.network is not NamespaceMode.NODE:
        found.append({"type": "network", "path": os.fspath(paths.namespace("net"))})
        found.append({"type": "uts", "path": os.fspath(paths.namespace("uts"))})
    if pod.namespaces.ipc is not NamespaceMode.NODE:
        found.append({"type": "ipc", "path": os.fspath(paths.namespace("ipc"))})
    match spec.namespaces.pid:
        case NamespaceMode.NODE:
            pass
        case NamespaceMode.POD:
            found.append({"type": "pid", "path": os.fspath(paths.namespace("pid"))})
        case NamespaceMode.TARGET:
            found.append({"type": "pid", "path": f"/proc/{inputs.target_pid}/ns/pid"})
        case NamespaceMode.CONTAINER:
            found.append({"type": "pid"})
    if pod.namespaces.user is NamespaceMode.POD:
        found.append({"type": "user", "path": os.fspath(paths.namespace("user"))})
    if volumes.private_cgroups() and not spec.security.privileged:
        found.append({"type": "cgroup"})
    return _changed(found, spec)


def _changed(found: list[dict[str, Any]], spec: ContainerSpec) -> list[dict[str, Any]]:
    """The namespaces with those replaced or left out that somebody else wants otherwise."""
    wanted = {one.kind: one for one in spec.on_host.namespaces}
    kept = [entry for entry in found if entry["type"] not in wanted]
    for one in wanted.values():
        if not one.of_host:
            kept.append({"type": one.kind, "path": one.path} if one.path else {"type": one.kind})
    return kept


def resources(wanted: Resources) -> dict[str, Any]:
    """``linux.resources`` for the limits that are set.

    Those of a controller that the host does not have are left out, as other runtimes do: the kubelet
    sends a limit for each size of huge pages, whether the host counts them or not.
    """
    controllers = cgroups.hierarchy().controllers
    found: dict[str, Any] = {}
    cpu = {
        "period": wanted.cpu_period,
        "quota": wanted.cpu_quota,
        "shares": wanted.cpu_shares,
        "cpus": wanted.cpuset_cpus,
        "mems": wanted.cpuset_mems,
    }
    if cpu := {name: value for name, value in cpu.items() if value}:
        found["cpu"] = cpu
    swap = wanted.swap_limit or (wanted.memory_limit if _swap_counted() else 0)
    memory = {name: value for name, value in (("limit", wanted.memory_limit), ("swap", swap)) if value}
    if memory:
        found["memory"] = memory
    unified = dict(wanted.unified)
    most = wanted.pids_limit
    if unified.get("pids.max", "").isdecimal() and len(unified["pids.max"]) < 19:
        # The one limit of version 2 that the other version has as well, and under its own name everywhere.
        most = int(unified.pop("pids.max"))
    if most and "pids" in controllers:
        found["pids"] = {"limit": most}
    if wanted.hugepage_limits and "hugetlb" in controllers:
        found["hugepageLimits"] = [{"pageSize": s, "limit": limit} for s, limit in wanted.hugepage_limits]
    if unified:
        found["unified"] = unified
    return found


def _swap_counted() -> bool:
    """Whether the kernel counts swap for each group."""
    host = cgroups.hierarchy()
    if host.version == 2:
        return True
    memory = host.controllers.get("memory")
    return memory is not None and (memory / "memory.memsw.limit_in_bytes").exists()
