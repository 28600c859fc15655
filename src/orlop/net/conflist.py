"""Network configuration lists (CNI specification 1.0, section 1), read from a directory.

The first file by name wins, as with other runtimes. Versions 0.3.1 to 1.1.0 are understood.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from orlop.errors import InvalidArgument
from orlop.value import UNREADABLE, Value

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""CNI versions that Orlop speaks, oldest first."""

CHECK_SINCE = "0.4.0"
STATUS_SINCE = "1.1.0"
DEFAULT_SUBNETS = ("10.88.64.0/20",)  # podman has the beginning of 10.88.0.0/16

_SUFFIXES = (".conf", ".conflist", ".json")
_MAX_SIZE = 1 << 20


class PluginConfig(Value, frozen=True):
    """One step of a list; ``document`` is the plug-in's configuration as it stands in the file."""

    type: str
    capabilities: dict[str, bool]
    document: dict[str, Any]


class NetworkList(Value, frozen=True):
    """A configuration list. ``masquerade`` are the subnets whose outgoing traffic Orlop itself rewrites."""

    name: str
    version: str
    plugins: tuple[PluginConfig, ...]
    disable_check: bool = False
    masquerade: tuple[str, ...] = ()

    def at_least(self, version: str) -> bool:
        """Whether the list is of that CNI version or a newer one."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)


class _Plugin(msgspec.Struct):
    type: str
    capabilities: dict[str, bool] = {}


class _List(msgspec.Struct, rename="camel"):
    name: str
    cni_version: str = "0.3.0"
    cni_versions: list[str] = []
    disable_check: bool = False
    plugins: list[dict[str, Any]] = []
    type: str = ""
    masquerade: list[str] = msgspec.field(name="orlop.masquerade", default_factory=list)


def parse(data: bytes, source: str) -> NetworkList:
    """Check and convert one file's contents. Raises InvalidArgument naming ``source`` and the fault."""
    try:
        found = msgspec.json.decode(data, type=_List)
        whole: dict[str, Any] = msgspec.json.decode(data)
        # A single plug-in's configuration is a list of one.
        documents = found.plugins if "plugins" in whole else [whole]
        plugins = tuple(
            PluginConfig(type=plugin.type, capabilities=plugin.capabilities, document=document)
            for document in documents
            for plugin in (msgspec.convert(document, _Plugin),)
        )
    except UNREADABLE as error:
        raise InvalidArgument(f"network configuration {source}: {error}") from error
    for plugin in plugins:
        if not plugin.type or "/" in plugin.type:
            raise InvalidArgument(f"network configuration {source}: {plugin.type!r} is no plug-in type")
    if not found.name or not plugins:
        raise InvalidArgument(f"network configuration {source}: it has no name or no plug-ins")
    return NetworkList(
        name=found.name,
        version=_version(found, source),
        plugins=plugins,
        disable_check=found.disable_check,
        masquerade=_subnets(found.masquerade, source),
    )


def _version(found: _List, source: str) -> str:
    offered = found.cni_versions or [found.cni_version]
    known = [version for version in VERSIONS if version in offered]
    if not known:
        raise InvalidArgument(
            f"network configuration {source}: CNI version {', '.join(offered)[:80]} is not one of "
            f"{', '.join(VERSIONS)}"
        )
    return known[-1]


def _subnets(texts: Iterable[str], source: str) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(text)) for text in texts)
    except ValueError as error:
        raise InvalidArgument(f"network configuration {source}: orlop.masquerade: {error}") from error


def load(directory: Path) -> NetworkList | None:
    """The first list in ``directory`` by file name, or None when there is none.

    Raises InvalidArgument when that first one cannot be used.
    """
    try:
        names = sorted(path for path in directory.iterdir() if path.suffix in _SUFFIXES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    for path in names:
        try:
            if path.stat().st_size > _MAX_SIZE:
                raise InvalidArgument(f"network configuration {path} is larger than {_MAX_SIZE} bytes")
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InvalidArgument(f"network configuration {path}: {error.strerror}") from error
        return parse(data, str(path))
    return None


def stamp(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the configuration files: equal as long as nothing changed."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix in _SUFFIXES)
        return tuple((path.name, (found := path.stat()).st_size, found.st_mtime_ns) for path in paths)
    except OSError:
        return ()


def default_conflist(
    subnets: Iterable[str] = DEFAULT_SUBNETS, *, name: str = "orlop", bridge: str = "orlop0"
) -> str:
    """The text of the default network: a bridge, addresses from the host, ports of the host.

    The bridge plug-in could do the masquerading itself, with several iptables calls for every pod
    (ADD 19 instead of 8 ms, DEL 65 instead of 16 ms); Orlop does it once for the whole subnet.
    """
    networks = [ipaddress.ip_network(subnet) for subnet in subnets]
    everywhere = {4: "0.0.0.0/0", 6: "::/0"}
    bridge_plugin = {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": str(network)}] for network in networks],
            "routes": [{"dst": everywhere[network.version]} for network in networks],
        },
    }
    document = {
        "cniVersion": "1.0.0",
        "name": name,
        "orlop.masquerade": [str(network) for network in networks],
        "plugins": [bridge_plugin, {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}],
    }
    return json.dumps(document, indent=2) + "\n"
