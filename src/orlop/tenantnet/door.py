"""The agent's socket: a CNI plug-in (CNI specification 1.0) whose program need not be started.

What is said on it is in :mod:`orlop.net.served`: simple enough for the program that other runtimes start to
be a few lines.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import msgspec

from orlop.errors import Code, InvalidArgument, OrlopError
from orlop.host import roots, sockets
from orlop.host.exporter import CallMetrics
from orlop.host.tasks import Tasks
from orlop.net import plugins
from orlop.net.conflist import VERSIONS
from orlop.net.plugins import Invocation, PluginFailed
from orlop.tenantnet.agent import TenantAgent
from orlop.tenantnet.leases import Attempt
from orlop.tenantnet.model import Lease
from orlop.value import UNREADABLE

log = logging.getLogger(__name__)

_LARGEST: Final = 4 << 20
_READ_TIME: Final = 10.0
_DELEGATE_TIME: Final = 60.0
_NEWEST_FOR_DELEGATES: Final = "1.0.0"
"""Plug-ins of Debian 12 refuse what is newer."""

_HANDED_ON: Final = ("prevResult", "runtimeConfig")
_VERBS: Final = frozenset({"ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION"})
_CODES: Final = {Code.INVALID_ARGUMENT: 7, Code.NOT_FOUND: 3, Code.UNAVAILABLE: 11}
_OTHER: Final = 100
"""CNI's codes: 3 an unknown container, 7 a wrong configuration, 11 try again later, from 100 our own."""


class PluginDocument(msgspec.Struct, rename="camel"):
    """The part of a plug-in's configuration that is read."""

    name: str = ""
    cni_version: str = "0.3.0"
    delegate: dict[str, Any] | None = None
    valid: list[dict[str, str]] = msgspec.field(name="cni.dev/valid-attachments", default_factory=list)


class PluginCall(msgspec.Struct):
    """One call: its variables, its configuration as a document, and the part of that which is read."""

    variables: dict[str, str]
    document: dict[str, Any]
    plugin: PluginDocument

    @property
    def container(self) -> str:
        """The container's id."""
        return self.variables.get("CNI_CONTAINERID", "")

    @property
    def interface(self) -> str:
        """The name that the pod's interface shall have."""
        return self.variables.get("CNI_IFNAME", "")

    @property
    def arguments(self) -> dict[str, str]:
        """What Kubernetes says of the pod."""
        pairs = (part.partition("=") for part in self.variables.get("CNI_ARGS", "").split(";"))
        return {key: value for key, _, value in pairs}


def decode(data: bytes) -> PluginCall:
    """Read a call. Raises InvalidArgument."""
    head, whole, body = data.partition(b"\0\0")
    if not whole:
        # A caller that was killed in the middle: half of a pod's namespace may be another tenant's.
        raise InvalidArgument("this call of a CNI plug-in breaks off")
    try:
        variables = dict(part.decode().split("=", 1) for part in head.split(b"\0") if b"=" in part)
        document = msgspec.json.decode(body, type=dict[str, Any])
        plugin = msgspec.convert(document, PluginDocument)
    except UNREADABLE as error:
        raise InvalidArgument(f"this is no call of a CNI plug-in: {error}") from error
    return PluginCall(variables=variables, document=document, plugin=plugin)


def _verb(asked: PluginCall) -> str:
    said = asked.variables.get("CNI_COMMAND", "")
    return said if said in _VERBS else "other"


class AgentDoor:
    """Serves an agent on a Unix socket that root alone may use.

    ``root`` is where the agent finds what callers call ``/``: pods' namespaces, and plug-ins for pods without
    a tenant.
    """

    def __init__(
        self, agent: TenantAgent, path: Path, root: Path = roots.OWN, *, meter: CallMetrics | None = None
    ) -> None:
        self._agent, self._path, self._root, self._meter = agent, path, root, meter
        self._tasks = Tasks()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Take calls. Raises FailedPrecondition."""
        self._server = await sockets.listen(self._path, self._accept, mode=0o600)

    async def close(self) -> None:
        """Take no more; those that came are answered. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
            self._server = None
        await self._tasks.drain()
        await self._tasks.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.spawn(self._serve(reader, writer), "a call of the CNI plug-in")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            data = bytearray()
            async with asyncio.timeout(_READ_TIME):
                while chunk := await reader.read(1 << 16):
                    data += chunk
                    if len(data) > _LARGEST:
                        return
            writer.write(await self._answer(bytes(data)))
            await writer.drain()
        except (OSError, TimeoutError) as error:
            log.info("a caller went away: %s", error or type(error).__name__)
        finally:
            writer.close()

    async def _answer(self, data: bytes) -> bytes:
        version = VERSIONS[-1]
        try:
            asked = decode(data)
            version = asked.plugin.cni_version
            with self._meter.call(_verb(asked)) if self._meter else nullcontext():
                said = await self._call(asked)
            return b"0\n" + (said if isinstance(said, bytes) else msgspec.json.encode(said) if said else b"")
        except (OrlopError, OSError) as error:
            code = _CODES.get(error.code, _OTHER) if isinstance(error, OrlopError) else _OTHER
            if isinstance(error, PluginFailed):
                code = error.cni_code or _OTHER
            return b"1\n" + msgspec.json.encode({"cniVersion": version, "code": code, "msg": str(error)})

    async def _call(self, asked: PluginCall) -> dict[str, Any] | bytes | None:
        command = asked.variables.get("CNI_COMMAND", "")
        if command == "VERSION":
            return {"cniVersion": VERSIONS[-1], "supportedVersions": list(VERSIONS)}
        if asked.plugin.cni_version not in VERSIONS:
            raise InvalidArgument(f"CNI version {asked.plugin.cni_version[:20]!r} is not known here")
        match command:
            case "ADD":
                return await self._add(asked)
            case "DEL" if not await self._agent.delete(asked.container, asked.interface):
                await self._delegate(asked)
            case "CHECK" if not await self._agent.check(asked.container, asked.interface):
                await self._delegate(asked)
            case "GC":
                pairs = [(one.get("containerID", ""), one.get("ifname", "")) for one in asked.plugin.valid]
                await self._agent.collect(pairs)
            case "STATUS":
                await self._agent.ready()
            case "DEL" | "CHECK":
                pass
            case _:
                raise InvalidArgument(f"CNI_COMMAND {command[:20]!r} is none")
        return None

    async def _add(self, asked: PluginCall) -> dict[str, Any] | bytes:
        variables, about = asked.variables, asked.arguments
        if not asked.container or not asked.interface or not variables.get("CNI_NETNS"):
            raise InvalidArgument("ADD needs CNI_CONTAINERID, CNI_IFNAME and CNI_NETNS")
        attempt = Attempt(
            container=asked.container,
            interface=asked.interface,
            netns=str(self._found(variables["CNI_NETNS"])),
            namespace=about.get("K8S_POD_NAMESPACE", ""),
            pod=about.get("K8S_POD_NAME", ""),
            uid=about.get("K8S_POD_UID", ""),
        )
        lease = await self._agent.add(attempt)
        if lease is not None:
            return outcome(lease, asked.plugin.cni_version)
        if asked.plugin.delegate is None:
            raise InvalidArgument(
                f"namespace {attempt.namespace!r} is no tenant's, and the network has no delegate for such"
            )
        return await self._delegate(asked)

    def _found(self, netns: str) -> Path:
        if not netns.startswith("/"):
            raise InvalidArgument(f"CNI_NETNS {netns[:80]!r} is no absolute path")
        return roots.below(self._root, Path(netns))

    async def _delegate(self, asked: PluginCall) -> bytes:
        """Have the plug-in called that pods of no tenant get their network from."""
        if asked.plugin.delegate is None:
            return b""
        version = min(asked.plugin.cni_version, _NEWEST_FOR_DELEGATES, key=VERSIONS.index)
        document: dict[str, Any] = dict(asked.plugin.delegate)
        document |= {key: asked.document[key] for key in _HANDED_ON if key in asked.document}
        document |= {"name": asked.plugin.name, "cniVersion": version}
        if not isinstance(document.get("type"), str):
            raise InvalidArgument(f"the delegate of network {asked.plugin.name!r} has no type")
        invocation = Invocation(
            container_id=asked.container,
            netns=asked.variables.get("CNI_NETNS", ""),
            interface=asked.interface,
            arguments=tuple(asked.arguments.items()),
        )
        return await plugins.execute(
            asked.variables.get("CNI_COMMAND", ""),
            document,
            invocation,
            bin_dirs=asked.variables.get("CNI_PATH", "").split(":"),
            timeout=_DELEGATE_TIME,
            root=self._root,
        )


def outcome(lease: Lease, version: str) -> dict[str, Any]:
    """The result of ADD: the pod's address is its alias, as the cluster knows no other."""
    inside = {"name": lease.interface, "mac": lease.mac, "sandbox": lease.netns}
    address: dict[str, Any] = {"address": f"{lease.alias}/32", "interface": 1}
    if VERSIONS.index(version) < VERSIONS.index("1.0.0"):
        address["version"] = "4"
    return {
        "cniVersion": version,
        "interfaces": [{"name": lease.port, "mac": lease.port_mac}, inside],
        "ips": [address],
    }
