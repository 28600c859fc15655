"""A chain of plug-ins for one attachment (CNI specification 1.0, section 3).

An attachment is written to a file before the first plug-in runs and holds all that DEL needs, so
that a network whose configuration has changed since, or whose ADD was cut short by a crash, is
still taken down as it was set up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from orlop.host import files
from orlop.host.tasks import Undo
from orlop.net import plugins, result, served
from orlop.net.conflist import CHECK_SINCE, NetworkList, PluginConfig
from orlop.net.plugins import Invocation
from orlop.value import UNREADABLE, Value

_NO_PORTS_NO_WORK = "portmap"


class Attachment(Value, frozen=True):
    """One interface of one pod. ``outcome`` is the last plug-in's result, once there is one."""

    network: NetworkList
    invocation: Invocation
    capabilities: dict[str, Any] = msgspec.field(default_factory=dict)
    outcome: dict[str, Any] | None = None


class AttachmentRecords:
    """The attachments on disk, one file for each pod."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, pod_id: str) -> Path:
        if not pod_id or "/" in pod_id or pod_id.startswith("."):
            raise ValueError(f"{pod_id!r} is no pod id")
        return self._directory / f"{pod_id}.json"

    def save(self, attachment: Attachment) -> None:
        """Replace the pod's file. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        files.save(self._path(attachment.invocation.container_id), msgspec.json.encode(attachment))

    def load(self, pod_id: str) -> Attachment | None:
        """The pod's attachment, or None. A damaged file counts as none."""
        try:
            return msgspec.json.decode(self._path(pod_id).read_bytes(), type=Attachment)
        except (FileNotFoundError, *UNREADABLE):
            return None

    def forget(self, pod_id: str) -> None:
        """Remove the pod's file. Idempotent."""
        self._path(pod_id).unlink(missing_ok=True)


class Chain:
    """Runs the plug-ins of an attachment."""

    def __init__(self, bin_dirs: Sequence[str], timeout: float) -> None:
        self._bin_dirs = tuple(bin_dirs)
        self._timeout = timeout

    def missing(self, network: NetworkList) -> list[str]:
        """Plug-in types of the list that are installed nowhere."""
        return [
            plugin.type
            for plugin in network.plugins
            if served.KEY not in plugin.document and plugins.find(plugin.type, self._bin_dirs) is None
        ]

    async def add(self, attachment: Attachment) -> dict[str, Any]:
        """ADD in order, each plug-in given the result of the one before. Raises PluginFailed, Internal."""
        outcome: dict[str, Any] | None = None
        for plugin in _needed(attachment):
            output = await self._execute("ADD", plugin, attachment, outcome)
            outcome = result.check(output, plugin.type)
        return outcome or {}

    async def check(self, attachment: Attachment) -> None:
        """CHECK in order. Raises PluginFailed when something is not as ADD left it."""
        if attachment.network.disable_check or not attachment.network.at_least(CHECK_SINCE):
            return
        for plugin in _needed(attachment):
            await self._execute("CHECK", plugin, attachment, attachment.outcome)

    async def delete(self, attachment: Attachment) -> None:
        """DEL in reverse order. A plug-in that fails does not keep the others from their part.

        Raises NotUndone naming each that failed.
        """
        undo = Undo(f"network {attachment.network.name} of pod {attachment.invocation.container_id[:12]}")
        previous = attachment.outcome if attachment.network.at_least(CHECK_SINCE) else None
        for plugin in reversed(_needed(attachment)):
            await undo.step(f"plug-in {plugin.type}", self._execute("DEL", plugin, attachment, previous))
        undo.finish()

    async def status(self, network: NetworkList) -> None:
        """STATUS of each plug-in (CNI 1.1). Raises PluginFailed."""
        nobody = Attachment(network=network, invocation=Invocation(container_id="", netns="", interface=""))
        for plugin in network.plugins:
            await self._execute("STATUS", plugin, nobody, None)

    async def _execute(
        self, command: str, plugin: PluginConfig, attachment: Attachment, previous: dict[str, Any] | None
    ) -> bytes:
        network = attachment.network
        document = {**plugin.document, "name": network.name, "cniVersion": network.version}
        wanted = {
            name: attachment.capabilities[name]
            for name, on in plugin.capabilities.items()
            if on and name in attachment.capabilities
        }
        if wanted:
            document["runtimeConfig"] = wanted
        if previous is not None:
            document["prevResult"] = previous
        return await plugins.execute(
            command, document, attachment.invocation, bin_dirs=self._bin_dirs, timeout=self._timeout
        )


def _needed(attachment: Attachment) -> list[PluginConfig]:
    """The plug-ins to run. ``portmap`` without ports only hands on what it is given: 3 ms for nothing."""
    chain = list(attachment.network.plugins)
    if attachment.capabilities.get("portMappings") or len(chain) == 1:
        return chain
    first, *others = chain
    return [first, *(plugin for plugin in others if plugin.type != _NO_PORTS_NO_WORK)]
