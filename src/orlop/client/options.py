"""What pods and containers may be given, in the words people write.

The same texts are understood by ``orlop run``: sizes as ``512m``, ports as ``8080:80``, volumes as
``/host:/inside:ro`` or ``name:/inside``. What cannot be understood raises InvalidArgument.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from typing import TypedDict

from orlop.client import health, restarts, rights
from orlop.client.launch import RunOptions
from orlop.client.mounts import parse_tmpfs, parse_volume
from orlop.client.texts import parse_size, utf8
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_PROTOCOLS = {"tcp": pb.TCP, "udp": pb.UDP, "sctp": pb.SCTP}


class PodKeywords(TypedDict, total=False):
    """What a pod may be given; everything has a default."""

    name: str
    """Name and hostname; a made-up one else."""
    handler: str
    """``vm`` or ``process``; the daemon's default else."""
    ports: Sequence[str]
    """``[HOSTIP:]HOSTPORT:PORT[/tcp|udp|sctp]``."""
    host_network: bool
    """The host's network; only with the handler ``process``."""
    hostname: str
    """Its name is its hostname else."""
    dns: Sequence[str]
    """Name servers, by address; the host's else."""
    dns_search: Sequence[str]
    """Domains in which names are looked up."""
    sysctls: Mapping[str, str]
    """Parameters of its kernel."""


class ContainerKeywords(TypedDict, total=False):
    """What a container may be given; everything has a default."""

    env: Mapping[str, str]
    volumes: Sequence[str]
    """``HOSTPATH:/PATH/INSIDE[:ro]``, or a volume's name instead of the path."""
    memory: int | str
    """The limit, in bytes or as ``512m``."""
    cpus: float
    """The limit, in processors."""
    user: str
    """A name or a number, with a number as its group after a colon."""
    workdir: str
    entrypoint: str
    """Instead of the image's own."""
    privileged: bool
    """All rights, inside its VM."""
    read_only: bool
    """Its root cannot be written to."""
    cap_add: Sequence[str]
    """Capabilities that it has besides the usual ones, or ``ALL``."""
    cap_drop: Sequence[str]
    """Capabilities that it does not have, or ``ALL``."""
    labels: dict[str, str]
    add_host: Sequence[str]
    """``NAME:ADDRESS`` for its /etc/hosts."""
    tmpfs: Sequence[str]
    """``/PATH`` in memory, ``/PATH:size=64m,mode=1777,noexec``."""
    ulimits: Sequence[str]
    """``nofile=1024:2048``: soft and hard, or one for both."""
    pids_limit: int
    """Processes and threads that it may have."""
    group_add: Sequence[int]
    """Groups besides its user's own."""
    devices: Sequence[str]
    """``/dev/HOST[:/dev/INSIDE[:rwm]]``."""
    security: Sequence[str]
    """``no-new-privileges``, ``seccomp=unconfined`` or ``seccomp=/PROFILE``."""
    stop_signal: str
    """Instead of the image's own."""
    stop_timeout: int
    """Seconds before it is killed, when it is stopped."""
    health_cmd: str | Sequence[str]
    """Says by its exit code whether it is well: for a shell, or as words; or ``none``. The image's else."""
    health_interval: float | str
    """Seconds from one check to the next, or ``1m30s``; 0: only when somebody asks."""
    health_timeout: float | str
    """Seconds that a check may take."""
    health_retries: int
    """Checks that must fail one after the other."""
    health_start_period: float | str
    """Seconds at the beginning in which that does not count."""
    restart: str
    """``on-failure``, ``on-failure:3`` or ``always``: the daemon runs it again, also if its VM has ended."""


class RunKeywords(PodKeywords, ContainerKeywords, total=False):
    """What a container in a pod of its own may be given."""


def launch(
    image: str, command: Sequence[str], options: RunKeywords, *, interactive: bool = False
) -> RunOptions:
    """All of that as one value. Raises InvalidArgument."""
    memory = options.get("memory", 0)
    return RunOptions(
        image=image,
        command=tuple(command),
        interactive=interactive,
        ports=tuple(parse_port(text) for text in options.get("ports", ())),
        volumes=(
            *(parse_volume(text) for text in options.get("volumes", ())),
            *(parse_tmpfs(text) for text in options.get("tmpfs", ())),
        ),
        environment=tuple(
            pb.KeyValue(key=utf8(key, key), value=os.fsencode(value))
            for key, value in options.get("env", {}).items()
        ),
        memory=parse_size(memory) if isinstance(memory, str) else memory,
        cpus=options.get("cpus", 0.0),
        name=options.get("name", ""),
        handler=options.get("handler", ""),
        workdir=options.get("workdir", ""),
        user=options.get("user", ""),
        entrypoint=options.get("entrypoint", ""),
        host_network=options.get("host_network", False),
        privileged=options.get("privileged", False),
        read_only=options.get("read_only", False),
        hostname=options.get("hostname", ""),
        dns=name_servers(options.get("dns", ()), options.get("dns_search", ())),
        capabilities=capabilities(options.get("cap_add", ()), options.get("cap_drop", ())),
        labels=options.get("labels", {}),
        hosts=hosts(options.get("add_host", ())),
        ulimits=tuple(rights.ulimit(text) for text in options.get("ulimits", ())),
        pids=options.get("pids_limit", 0),
        groups=tuple(options.get("group_add", ())),
        devices=tuple(rights.device(text) for text in options.get("devices", ())),
        sysctls=dict(options.get("sysctls", {})),
        stop_signal=rights.signal_number(options.get("stop_signal", "")),
        stop_timeout=options.get("stop_timeout"),
        health=health.wish(
            options.get("health_cmd", ""),
            interval=options.get("health_interval"),
            timeout=options.get("health_timeout"),
            start_period=options.get("health_start_period"),
            retries=options.get("health_retries"),
        ),
        restart=restarts.parse(options.get("restart", "no")).wish(),
        **rights.security(options.get("security", ())),
    )


def name_servers(
    servers: Sequence[str], searches: Sequence[str], options: Sequence[str] = ()
) -> pb.DNSConfig | None:
    """None for the host's own."""
    found = pb.DNSConfig(servers=_all_utf8(servers), searches=_all_utf8(searches), options=_all_utf8(options))
    return found if servers or searches or options else None


def hosts(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """``NAME:ADDRESS`` each, as names with addresses. Raises InvalidArgument."""
    found = []
    for text in texts:
        name, _, address = text.partition(":")
        try:
            ip = ipaddress.ip_address(address.strip("[]"))
        except ValueError:
            raise InvalidArgument(f"{text}: write NAME:ADDRESS, for example db:10.0.0.7") from None
        if not _HOST.fullmatch(name):
            raise InvalidArgument(f"{text}: {name or 'nothing'} is not the name of a host")
        found.append((name, str(ip)))
    return tuple(found)


def capabilities(more: Sequence[str], less: Sequence[str]) -> pb.Capability | None:
    """None for the usual ones."""
    found = pb.Capability(add_capabilities=_all_utf8(more), drop_capabilities=_all_utf8(less))
    return found if more or less else None


def _port(text: str, whole: str, lowest: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6) or not lowest <= int(text) <= 65535:
        raise InvalidArgument(f"{whole}: {text or 'nothing'} is not a port number")
    return int(text)


def _all_utf8(texts: Sequence[str]) -> list[str]:
    return [utf8(text, text) for text in texts]


def parse_port(text: str) -> pb.PortMapping:
    """``[HOSTIP:]HOSTPORT:PORT[/tcp|udp|sctp]``."""
    where, _, protocol = text.partition("/")
    if (protocol or "tcp").lower() not in _PROTOCOLS:
        raise InvalidArgument(f"{text}: the protocol is tcp, udp or sctp, not {protocol}")
    left, colon, inside = where.rpartition(":")
    if not colon:
        raise InvalidArgument(f"{text}: write HOSTPORT:PORT, for example 8080:80")
    address, _, outside = left.rpartition(":")
    return pb.PortMapping(
        protocol=_PROTOCOLS[(protocol or "tcp").lower()],
        container_port=_port(inside, text, 1),
        host_port=_port(outside, text, 1),
        host_ip=utf8(address.strip("[]"), text),
    )


def parse_forward(text: str) -> tuple[int, int]:
    """``[LOCAL:]PORT``: the port here, 0 for any free one, and the pod's."""
    left, colon, inside = text.rpartition(":")
    port = _port(inside, text, 1)
    return (_port(left, text, 0) if colon else port), port
