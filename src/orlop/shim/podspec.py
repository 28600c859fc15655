"""A pod as containerd describes it to who makes its sandbox, in the engine's words. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from orlop.bundle.features import SPECIFICATION
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.host import cgroups
from orlop.sandbox.spec import Dns, NamespaceMode, Namespaces, PodSpec, Resources
from orlop.shim.api import pod_pb2 as pb
from orlop.shim.model import Key
from orlop.shim.places import FRONT
from orlop.shim.placing import REMEDY

KIND = "runtime.v1.PodSandboxConfig"
"""What containerd calls the description."""

_DOCUMENT = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
_HOSTNAME = re.compile(r"[\w.-]{0,64}", re.ASCII)
_WORD = re.compile(r"[\x21-\x7e]{1,1024}")
_SYSCTL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,255}")
_VALUE = re.compile(r"[\x20-\x7e\t]{0,1024}")
_MOST = 64
_MOST_NUMBER = 1 << 62


def config(options: AnyMessage) -> pb.PodSandboxConfig:
    """The description in what came with a request; an empty one where nothing did. Raises InvalidArgument."""
    if not options.type_url and not options.value:
        return pb.PodSandboxConfig()
    if options.type_url.rpartition("/")[2] != KIND:
        raise InvalidArgument(f"{options.type_url[:120]!r} describes no pod: {KIND} does")
    try:
        return pb.PodSandboxConfig.FromString(options.value)
    except DecodeError as error:
        raise InvalidArgument(f"the description of the pod is no {KIND}: {error}") from error


def spec(key: Key, netns: str, asked: pb.PodSandboxConfig) -> PodSpec:
    """The VM, in the network namespace at ``netns``. Raises InvalidArgument, and FailedPrecondition for a pod
    that none can be."""
    namespace, name = key
    _check(name, asked.linux.security_context.namespace_options)
    if not _HOSTNAME.fullmatch(asked.hostname):
        raise InvalidArgument(f"sandbox {name}: {asked.hostname[:80]!r} is not a host name")
    group = cgroups.expand(asked.linux.cgroup_parent) if asked.linux.cgroup_parent else "/"
    return PodSpec(
        id="",
        name=name[:253],
        namespace=namespace,
        uid=name,
        hostname=asked.hostname,
        netns=netns,
        dns=Dns(
            servers=_words(name, "name servers", asked.dns_config.servers),
            searches=_words(name, "search domains", asked.dns_config.searches),
            options=_words(name, "resolver options", asked.dns_config.options),
        ),
        sysctls=_sysctls(name, asked.linux.sysctls),
        cgroup_parent="" if group == "/" else group,
        namespaces=Namespaces(pid=NamespaceMode.CONTAINER),
        resources=_size(asked.linux.resources),
        handler="vm",
        front=FRONT,
    )


def document(spec: PodSpec) -> AnyMessage:
    """The same by the OCI runtime specification: containerd shows it to plug-ins of the node."""
    kinds = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
    linux = {
        "namespaces": [{"type": "network", "path": spec.netns}, *kinds],
        "sysctl": spec.sysctls,
        "cgroupsPath": spec.cgroup_parent,
    }
    found = {"ociVersion": SPECIFICATION, "hostname": spec.hostname, "linux": linux}
    return AnyMessage(type_url=_DOCUMENT, value=msgspec.json.encode(found))


def _check(name: str, asked: pb.NamespaceOption) -> None:
    for kind, mode in (("network", asked.network), ("PID", asked.pid), ("IPC", asked.ipc)):
        if mode == pb.NODE:
            raise FailedPrecondition(
                f"sandbox {name} asks for the host's {kind} namespace, which a VM does not share; {REMEDY}"
            )
    if asked.HasField("userns_options") and asked.userns_options.mode == pb.POD:
        raise FailedPrecondition(
            f"sandbox {name} asks for a user namespace: the users of a VM are the VM's own already; "
            "run it without"
        )


def _words(name: str, what: str, words: Sequence[str]) -> tuple[str, ...]:
    if len(words) > _MOST or not all(_WORD.fullmatch(word) for word in words):
        raise InvalidArgument(f"sandbox {name}: its {what} are not up to {_MOST} words")
    return tuple(words)


def _sysctls(name: str, asked: Mapping[str, str]) -> dict[str, str]:
    found = dict(asked)
    if len(found) > _MOST:
        raise InvalidArgument(f"sandbox {name} asks for {len(found)} kernel parameters; {_MOST} are the most")
    for key, value in found.items():
        if not _SYSCTL.fullmatch(key) or not _VALUE.fullmatch(value):
            raise InvalidArgument(f"sandbox {name}: {key[:80]!r} is not a kernel parameter with a value")
    return found


def _size(asked: pb.LinuxContainerResources) -> Resources:
    """The sum of its containers' limits; what is no limit is left out."""

    def number(value: int) -> int:
        return value if 0 < value < _MOST_NUMBER else 0

    return Resources(
        cpu_period=number(asked.cpu_period),
        cpu_quota=number(asked.cpu_quota),
        cpu_shares=number(asked.cpu_shares),
        memory_limit=number(asked.memory_limit_in_bytes),
    )
