"""Requests about pods, as values of ``pods``."""

from __future__ import annotations

import ipaddress
import re

from orlop.cri import validate
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.translate import common
from orlop.errors import InvalidArgument
from orlop.pods.records import PodFilter
from orlop.sandbox.spec import Dns, PodSpec, PortMapping

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9.])?")
"""A full name may end in a dot: so does a pod's where the cluster has no domain."""
_PROTOCOLS = {pb.TCP: "tcp", pb.UDP: "udp", pb.SCTP: "sctp"}
_STATES = {pb.SANDBOX_READY: True, pb.SANDBOX_NOTREADY: False}


def pod_spec(config: pb.PodSandboxConfig, handler: str) -> PodSpec:
    """The pod asked for; its id is still to be given. Raises InvalidArgument."""
    if not config.HasField("metadata"):
        raise InvalidArgument("config.metadata is missing")
    common.no_windows(config)
    metadata, linux, context = config.metadata, config.linux, config.linux.security_context
    where = "config.linux.security_context"
    if context.HasField("run_as_group") and not context.HasField("run_as_user"):
        raise InvalidArgument(f"{where}.run_as_group needs run_as_user")
    return PodSpec(
        id="",
        name=validate.name(metadata.name, "config.metadata.name"),
        namespace=validate.name(metadata.namespace, "config.metadata.namespace", required=False),
        uid=validate.name(metadata.uid, "config.metadata.uid", required=False),
        attempt=metadata.attempt,
        hostname=_hostname(config.hostname),
        log_directory=validate.absolute(config.log_directory, "config.log_directory", required=False),
        dns=_dns(config.dns_config),
        port_mappings=_port_mappings(config),
        labels=validate.pairs(config.labels, "config.labels"),
        annotations=validate.pairs(config.annotations, "config.annotations"),
        cgroup_parent=common.cgroup_parent(linux.cgroup_parent, "config.linux.cgroup_parent"),
        sysctls=common.sysctls(validate.pairs(linux.sysctls, "config.linux.sysctls"), "config.linux.sysctls"),
        namespaces=common.namespaces(context.namespace_options, f"{where}.namespace_options"),
        privileged=context.privileged,
        seccomp=common.seccomp(
            context.seccomp if context.HasField("seccomp") else None, context.seccomp_profile_path, where
        ),
        apparmor=common.apparmor(context.apparmor if context.HasField("apparmor") else None, "", where),
        selinux_label=common.selinux(context.selinux_options, f"{where}.selinux_options"),
        read_only_root=context.readonly_rootfs,
        overhead=common.resources(linux.overhead, "config.linux.overhead"),
        resources=common.resources(linux.resources, "config.linux.resources"),
        handler=validate.name(handler, "runtime_handler", required=False),
    )


def _hostname(value: str) -> str:
    if value and not _HOSTNAME.fullmatch(value):
        raise InvalidArgument(
            f"config.hostname {validate.excerpt(value)} is not a host name of at most 64 characters"
        )
    return value


def _dns(config: pb.DNSConfig) -> Dns:
    def words(values: object, field: str) -> tuple[str, ...]:
        listed: tuple[str, ...] = validate.items(values, field, limit=64)  # type: ignore[arg-type]
        return tuple(validate.word(value, field) for value in listed)

    return Dns(
        servers=words(config.servers, "config.dns_config.servers"),
        searches=words(config.searches, "config.dns_config.searches"),
        options=words(config.options, "config.dns_config.options"),
    )


def _port_mappings(config: pb.PodSandboxConfig) -> tuple[PortMapping, ...]:
    """The mappings that map something: those with a host port."""
    result = []
    for index, item in enumerate(validate.items(config.port_mappings, "config.port_mappings")):
        where = f"config.port_mappings[{index}]"
        mapping = PortMapping(
            protocol=validate.pick(_PROTOCOLS, item.protocol, f"{where}.protocol"),
            container_port=validate.number(item.container_port, f"{where}.container_port", 0, 65535),
            host_port=validate.number(item.host_port, f"{where}.host_port", 0, 65535),
            host_ip=_address(item.host_ip, f"{where}.host_ip"),
        )
        if mapping.host_port:
            validate.number(item.container_port, f"{where}.container_port", 1, 65535)
            result.append(mapping)
    return tuple(result)


def _address(value: str, field: str) -> str:
    if not value:
        return ""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise InvalidArgument(f"{field} {validate.excerpt(value)} is not an IP address") from None


def pod_filter(value: pb.PodSandboxFilter) -> PodFilter:
    """Which pods to list."""
    ready = None
    if value.HasField("state"):
        ready = validate.pick(_STATES, value.state.state, "filter.state.state")
    return PodFilter(
        id=validate.text(value.id, "filter.id", limit=validate.MAX_ID),
        ready=ready,
        labels=validate.pairs(value.label_selector, "filter.label_selector"),
    )


def stats_filter(value: pb.PodSandboxStatsFilter) -> PodFilter:
    """Whose statistics to list: pods that run."""
    return PodFilter(
        id=validate.text(value.id, "filter.id", limit=validate.MAX_ID),
        labels=validate.pairs(value.label_selector, "filter.label_selector"),
    )
