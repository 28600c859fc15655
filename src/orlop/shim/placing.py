"""Where a task belongs: a pod of a kubelet's, a container in one, or a VM of its own. Pure functions."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

import msgspec

from orlop.bundle import translate
from orlop.bundle.document import OciConfig
from orlop.bundle.roles import Role, role
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.host import cgroups
from orlop.pods.records import ContainerRecord
from orlop.sandbox.spec import NamespaceMode, Namespaces, PodSpec, Resources
from orlop.shim.places import FRONT

_PID_PATH = re.compile(r"/proc/\d{1,9}/ns/pid")
_MOST = 1 << 62
REMEDY = "another runtime of containerd's or CRI-O's can serve it, as runc's"


def place(config: OciConfig) -> tuple[Role, str]:
    """What it is, and of which sandbox where it is a container of one. Raises InvalidArgument."""
    found, sandbox = role(config)
    if found is not Role.MEMBER:
        return found, ""
    if not sandbox:
        raise InvalidArgument("config.json: a container of a pod that does not name its sandbox")
    return found, sandbox


def namespaces(config: OciConfig, name: str, others: Sequence[ContainerRecord] | None) -> Namespaces:
    """Whose processes it sees: its own, those of all, or where each sees its own, those of the other one.

    ``others`` are those in its sandbox, None without one. containerd names the process whose namespace is
    wanted, which is the VM for every container. Raises FailedPrecondition.
    """
    asked = (config.linux.namespaces or ()) if config.linux else ()
    if others is None or not any(one.type == "pid" and _PID_PATH.fullmatch(one.path) for one in asked):
        return Namespaces(pid=NamespaceMode.CONTAINER)
    alone = [one for one in others if one.spec.namespaces.pid is NamespaceMode.CONTAINER]
    if not alone:
        return Namespaces(pid=NamespaceMode.POD)
    if len(alone) > 1:
        raise FailedPrecondition(
            f"task {name} wants to see the processes of another container, but there are "
            f"{len(alone)} in its VM, which containerd does not tell apart"
        )
    return Namespaces(pid=NamespaceMode.TARGET, target_container=alone[0].id)


def network(config: OciConfig) -> str:
    """The path of its network namespace, "" for one of its own."""
    namespaces = (config.linux.namespaces or ()) if config.linux else ()
    return next((one.path for one in namespaces if one.type == "network"), "")


def pod(config: OciConfig, namespace: str, task_id: str, *, netns: str) -> PodSpec:
    """The VM of a sandbox, or of a task that is alone. Raises InvalidArgument."""
    annotations = config.annotations or {}
    group = _group(config, f"/{namespace}/{task_id}")
    spec = translate.pod(config, task_id, namespace, netns=netns, cgroup=group, front=FRONT)
    return msgspec.structs.replace(spec, resources=_size(annotations))


def check(config: OciConfig, name: str) -> None:
    """Raise FailedPrecondition for what no VM can have, and say what can."""
    try:
        translate.check(config)
    except FailedPrecondition as error:
        reason = str(error).removeprefix("it ")
        raise FailedPrecondition(f"task {name} {reason}; {REMEDY}") from error


def _group(config: OciConfig, usual: str) -> str:
    """The control group that the VM's is to be in, "" where nobody but containerd itself asked for one.

    For a pod it is what the kubelet made: where the pod's limits are, and where containerd looks for what the
    pod uses.
    """
    path = config.linux.cgroups_path if config.linux else ""
    if path in ("", usual):
        return ""
    if path.count(":") == 2:  # systemd's: the slice, and what its own unit would be called
        return cgroups.expand(path.partition(":")[0])
    parent = os.path.dirname(cgroups.expand(path))  # noqa: PTH120 - a pure path of text
    return parent if parent != "/" else ""


def _size(annotations: Mapping[str, str]) -> Resources:
    """The sum of its containers' limits, which a kubelet knows before there are any."""

    def number(name: str) -> int:
        text = annotations.get(f"io.kubernetes.cri.sandbox-{name}", "")
        return int(text) if text.isdecimal() and int(text) < _MOST else 0

    return Resources(
        cpu_period=number("cpu-period"),
        cpu_quota=number("cpu-quota"),
        cpu_shares=number("cpu-shares"),
        memory_limit=number("memory"),
    )
