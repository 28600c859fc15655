"""What pods and containers have in common: namespaces, resources, security profiles."""

from __future__ import annotations

import posixpath
import re

from orlop.cri import validate
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument
from orlop.sandbox.spec import (
    IdMapping,
    NamespaceMode,
    Namespaces,
    Resources,
    Seccomp,
    SeccompMode,
)

NAMESPACE_MODES = {
    pb.POD: NamespaceMode.POD,
    pb.CONTAINER: NamespaceMode.CONTAINER,
    pb.NODE: NamespaceMode.NODE,
    pb.TARGET: NamespaceMode.TARGET,
}
_SHARED_MODES = {pb.POD: NamespaceMode.POD, pb.NODE: NamespaceMode.NODE}
MODE_NUMBERS = {mode: number for number, mode in NAMESPACE_MODES.items()}

_SYSCTL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_PAGE_SIZE = re.compile(r"[0-9]{1,6}[KMG]B")
_CPUSET = re.compile(r"[0-9,\- ]*")
_UNIFIED = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)+")
_NO_LIMIT = 1 << 62
"""More memory than there is: a group of version 1 has nearly 1 << 63 for none, and kubelets pass that on."""
_PROFILES = {"": "", "runtime/default": "runtime/default", "docker/default": "runtime/default"}


def no_windows(
    request: pb.PodSandboxConfig | pb.ContainerConfig | pb.UpdateContainerResourcesRequest,
) -> None:
    """Refuse what only Windows could do."""
    if request.HasField("windows"):
        raise InvalidArgument("windows: this runtime runs Linux containers only")


def namespaces(option: pb.NamespaceOption, field: str) -> Namespaces:
    """Whose namespaces to live in. An absent message means POD for each, as proto3 has it."""
    pid = validate.pick(NAMESPACE_MODES, option.pid, f"{field}.pid")
    target = validate.text(option.target_id, f"{field}.target_id", limit=validate.MAX_ID)
    if pid is NamespaceMode.TARGET and not target:
        raise InvalidArgument(f"{field}.target_id is empty, but {field}.pid is TARGET")
    user, uids, gids = NamespaceMode.NODE, (), ()  # type: NamespaceMode, tuple[IdMapping, ...], tuple[IdMapping, ...]
    if option.HasField("userns_options"):
        user, uids, gids = _user_namespace(option.userns_options, f"{field}.userns_options")
    return Namespaces(
        network=validate.pick(_SHARED_MODES, option.network, f"{field}.network"),
        pid=pid,
        ipc=validate.pick(_SHARED_MODES, option.ipc, f"{field}.ipc"),
        target_container=target if pid is NamespaceMode.TARGET else "",
        user=user,
        uid_mappings=uids,
        gid_mappings=gids,
    )


def _user_namespace(
    option: pb.UserNamespace, field: str
) -> tuple[NamespaceMode, tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    mode = validate.pick(_SHARED_MODES, option.mode, f"{field}.mode")
    uids = id_mappings(option.uids, f"{field}.uids")
    gids = id_mappings(option.gids, f"{field}.gids")
    if mode is NamespaceMode.NODE:
        if uids or gids:
            raise InvalidArgument(f"{field}: mode NODE has no id mappings")
        return mode, (), ()
    if len(uids) != 1 or len(gids) != 1:
        raise InvalidArgument(f"{field}: mode POD needs exactly one mapping in uids and one in gids")
    if uids != gids:
        raise InvalidArgument(f"{field}: the mappings of uids and gids must be the same")
    if uids[0].container_id != 0:
        raise InvalidArgument(f"{field}.uids: the mapping must begin at container_id 0")
    return mode, uids, gids


def id_mappings(values: object, field: str) -> tuple[IdMapping, ...]:
    """Ranges of ids that are neither empty nor beyond 32 bits."""
    result = []
    mappings: tuple[pb.IDMapping, ...] = validate.items(values, field)  # type: ignore[arg-type]
    for index, item in enumerate(mappings):
        where = f"{field}[{index}]"
        validate.number(item.length, f"{where}.length", 1, validate.MAX_UID + 1)
        for start in (item.host_id, item.container_id):
            validate.number(start + item.length, f"{where}: start + length", 1, validate.MAX_UID + 1)
        result.append(IdMapping(container_id=item.container_id, host_id=item.host_id, length=item.length))
    return tuple(result)


def resources(value: pb.LinuxContainerResources, field: str) -> Resources:
    """Limits, checked for range; 0 or "" means that nothing was asked for, -1 no limit."""
    top = validate.MAX_INT64
    return Resources(
        cpu_period=validate.number(value.cpu_period, f"{field}.cpu_period", 0, 1_000_000),
        cpu_quota=validate.number(value.cpu_quota, f"{field}.cpu_quota", -1, top),
        cpu_shares=validate.number(value.cpu_shares, f"{field}.cpu_shares", 0, 262144),
        cpuset_cpus=_cpuset(value.cpuset_cpus, f"{field}.cpuset_cpus"),
        cpuset_mems=_cpuset(value.cpuset_mems, f"{field}.cpuset_mems"),
        memory_limit=_memory(value.memory_limit_in_bytes, f"{field}.memory_limit_in_bytes"),
        swap_limit=_memory(value.memory_swap_limit_in_bytes, f"{field}.memory_swap_limit_in_bytes"),
        oom_score_adj=validate.number(value.oom_score_adj, f"{field}.oom_score_adj", -1000, 1000),
        hugepage_limits=_hugepages(value, f"{field}.hugepage_limits"),
        unified=_unified(value, f"{field}.unified"),
    )


def _memory(value: int, field: str) -> int:
    limit = validate.number(value, field, -1, validate.MAX_INT64)
    return -1 if limit >= _NO_LIMIT else limit


def _cpuset(value: str, field: str) -> str:
    validate.text(value, field, limit=1024)
    if not _CPUSET.fullmatch(value):
        raise InvalidArgument(f"{field} {validate.excerpt(value)} is not a list of numbers and ranges")
    return value.strip()


def _hugepages(value: pb.LinuxContainerResources, field: str) -> tuple[tuple[str, int], ...]:
    result = []
    for item in validate.items(value.hugepage_limits, field, limit=16):
        if not _PAGE_SIZE.fullmatch(item.page_size):
            raise InvalidArgument(f"{field}: page size {validate.excerpt(item.page_size)} is not like 2MB")
        result.append((item.page_size, item.limit))
    return tuple(result)


def _unified(value: pb.LinuxContainerResources, field: str) -> tuple[tuple[str, str], ...]:
    entries = validate.pairs(value.unified, field)
    for key, content in entries.items():
        if len(key) > 128 or not _UNIFIED.fullmatch(key):
            raise InvalidArgument(f"{field}: {validate.excerpt(key)} is not the name of a cgroup file")
        validate.text(content, f"{field}[{key}]", limit=4096)
    return tuple(sorted(entries.items()))


def cgroup_parent(value: str, field: str) -> str:
    """A cgroup path, or a systemd slice."""
    validate.line(value, field)
    if ".." in value.split("/"):
        raise InvalidArgument(f"{field} {validate.excerpt(value)} contains '..'")
    return value


def sysctls(values: dict[str, str], field: str) -> dict[str, str]:
    """Kernel parameters, by dotted name."""
    for key, value in values.items():
        if len(key) > 256 or not _SYSCTL.fullmatch(key) or ".." in key:
            raise InvalidArgument(f"{field}: {validate.excerpt(key)} is not the name of a kernel parameter")
        validate.line(value, f"{field}[{key}]")
    return values


def seccomp(profile: pb.SecurityProfile | None, legacy_path: str, field: str) -> Seccomp:
    """The system-call filter: from the profile, else from the field it replaced, else none."""
    if profile is not None:
        kinds = {
            pb.SecurityProfile.RuntimeDefault: SeccompMode.RUNTIME_DEFAULT,
            pb.SecurityProfile.Unconfined: SeccompMode.UNCONFINED,
            pb.SecurityProfile.Localhost: SeccompMode.LOCALHOST,
        }
        mode = validate.pick(kinds, profile.profile_type, f"{field}.seccomp.profile_type")
        path = ""
        if mode is SeccompMode.LOCALHOST:
            path = validate.absolute(profile.localhost_ref, f"{field}.seccomp.localhost_ref")
        return Seccomp(mode=mode, path=path)
    where = f"{field}.seccomp_profile_path"
    validate.path(legacy_path, where, required=False)
    if legacy_path in ("", "unconfined"):
        return Seccomp()
    if legacy_path in _PROFILES:
        return Seccomp(mode=SeccompMode.RUNTIME_DEFAULT)
    if legacy_path.startswith("localhost/"):
        path = validate.absolute(legacy_path.removeprefix("localhost/"), where)
        return Seccomp(mode=SeccompMode.LOCALHOST, path=posixpath.normpath(path))
    raise InvalidArgument(f"{where} {validate.excerpt(legacy_path)} is not a kind of profile")


def apparmor(profile: pb.SecurityProfile | None, legacy_name: str, field: str) -> str:
    """The AppArmor choice as ``runtime/default``, ``unconfined``, ``localhost/NAME`` or ""."""
    if profile is None:
        name = validate.line(legacy_name, f"{field}.apparmor_profile")
        if name in _PROFILES:
            return _PROFILES[name]
        if name != "unconfined" and not name.removeprefix("localhost/") != name:
            raise InvalidArgument(
                f"{field}.apparmor_profile {validate.excerpt(name)} is not a kind of profile"
            )
        return name
    kinds = {
        pb.SecurityProfile.RuntimeDefault: "runtime/default",
        pb.SecurityProfile.Unconfined: "unconfined",
        pb.SecurityProfile.Localhost: "localhost/",
    }
    kind = validate.pick(kinds, profile.profile_type, f"{field}.apparmor.profile_type")
    if kind != "localhost/":
        return kind
    name = validate.line(profile.localhost_ref, f"{field}.apparmor.localhost_ref")
    if not name:
        raise InvalidArgument(f"{field}.apparmor.localhost_ref is empty")
    return kind + name.removeprefix("localhost/")


def selinux(option: pb.SELinuxOption, field: str) -> str:
    """The label ``user:role:type:level``, or "" when none was asked for."""
    parts = (option.user, option.role, option.type, option.level)
    for key, part in zip(("user", "role", "type", "level"), parts, strict=True):
        validate.line(part, f"{field}.{key}", limit=256)
        if key != "level" and ":" in part:
            raise InvalidArgument(f"{field}.{key} {validate.excerpt(part)} contains ':'")
    return ":".join(parts) if any(parts) else ""


def groups(values: object, field: str) -> tuple[int, ...]:
    """Supplemental group ids."""
    numbers: tuple[int, ...] = validate.items(values, field)  # type: ignore[arg-type]
    return tuple(validate.number(value, field, 0, validate.MAX_UID) for value in numbers)
