"""What pods and containers may be given, in the words people write.

The same texts are understood by ``orlop run``: sizes as ``512m``, ports as ``8080:80``, volumes as
``/host:/inside:ro`` or ``name:/inside``. What cannot be understood raises InvalidArgument.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from orlop.client.launch import NamedMount, RunOptions
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DIGITS = 20
_KEY = re.compile(r"(type|source|src|target|dst|destination|readonly|ro)=")
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
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
        volumes=tuple(parse_volume(text) for text in options.get("volumes", ())),
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
    )


def name_servers(servers: Sequence[str], searches: Sequence[str]) -> pb.DNSConfig | None:
    """None for the host's own."""
    found = pb.DNSConfig(servers=_all_utf8(servers), searches=_all_utf8(searches))
    return found if servers or searches else None


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


def parse_size(text: str) -> int:
    """``512m``, ``1.5g``, ``1048576`` in bytes; units are powers of 1024."""
    match = _SIZE.match(text.strip())
    if match is None or len(match[1]) > _DIGITS:
        raise InvalidArgument(f"{text} is not a size: write for example 512m or 2g")
    return int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])


def _port(text: str, whole: str, lowest: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6) or not lowest <= int(text) <= 65535:
        raise InvalidArgument(f"{whole}: {text or 'nothing'} is not a port number")
    return int(text)


def utf8(part: str, whole: str) -> str:
    """What a request can carry: an argument may be any bytes, CRI's texts are UTF-8."""
    try:
        part.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{whole!a}: {part!a} is not UTF-8") from None
    return part


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


def parse_volume(text: str) -> pb.Mount | NamedMount:
    """``HOST:CONTAINER[:ro|rw]``, where HOST is a path, or the name of a volume if no slash is in it.

    Or as :func:`parse_mount` has it.
    """
    if _KEY.match(text):
        return parse_mount(text)
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0]:
        raise InvalidArgument(f"{text}: write HOSTPATH:/PATH/INSIDE, with :ro to forbid writing")
    mode = parts[2] if len(parts) == 3 else "rw"
    if mode not in ("ro", "rw"):
        raise InvalidArgument(f"{text}: the mode is ro or rw, not {mode}")
    if _VOLUME.fullmatch(parts[0]):
        return NamedMount(parts[0], _inside(parts[1], text), mode == "ro")
    return _bind(parts[0], parts[1], text, read_only=mode == "ro")


def parse_mount(text: str) -> pb.Mount | NamedMount:
    """``type=volume|bind,source=NAME|PATH,target=/PATH[,readonly]``."""
    given: dict[str, str] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        key = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}.get(key, key)
        if key not in ("type", "source", "target", "readonly") or key in given:
            known = "type=volume|bind,source=..,target=/..[,readonly]"
            raise InvalidArgument(f"{text}: write {known}, each once, not {part}")
        given[key] = value
    if given.get("readonly", "") not in ("", "true", "false"):
        raise InvalidArgument(f"{text}: readonly stands alone, or is true or false")
    read_only = "readonly" in given and given["readonly"] != "false"
    source, target = given.get("source", ""), given.get("target", "")
    match given.get("type", "volume"):
        case "bind":
            return _bind(source, target, text, read_only=read_only)
        case "volume" if _VOLUME.fullmatch(source):
            return NamedMount(source, _inside(target, text), read_only)
        case "volume":
            raise InvalidArgument(f"{text}: {source or 'nothing'} is not the name of a volume")
        case "tmpfs":
            raise InvalidArgument(f"{text}: the daemon's interface, CRI, has no words for a tmpfs")
        case other:
            raise InvalidArgument(f"{text}: the type is volume or bind, not {other}")


def _inside(path: str, text: str) -> str:
    if not path.startswith("/"):
        raise InvalidArgument(f"{text}: the path inside begins with a slash, not {path or 'nothing'}")
    return utf8(path, text)


def _bind(source: str, target: str, text: str, *, read_only: bool) -> pb.Mount:
    """A path of this machine; a relative one counts from here."""
    if not source:
        raise InvalidArgument(f"{text}: no path of this machine is named")
    try:
        host = Path(source).expanduser().absolute()
        there = host.exists()
    except (RuntimeError, OSError) as error:  # no such user, a name that is too long
        raise InvalidArgument(f"{text}: {source}: {error}") from error
    if not there:
        raise InvalidArgument(f"{text}: {host} does not exist on this machine")
    inside, outside = _inside(target, text), utf8(os.fspath(host), text)
    return pb.Mount(container_path=inside, host_path=outside, readonly=read_only)
