"""The network of pods: a namespace each, attached and detached by CNI plug-ins.

Loopback is brought up with the namespace itself, no plug-in is run for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orlop.config import NetworkConfig
from orlop.errors import OrlopError, Unavailable
from orlop.host import tasks
from orlop.net import conflist, masquerade, result
from orlop.net.announce import announce
from orlop.net.chain import Attachment, AttachmentRecords, Chain
from orlop.net.conflist import STATUS_SINCE, NetworkList
from orlop.net.model import CniDns, NetworkResult, PortMappingLike
from orlop.net.plugins import Invocation, PluginFailed

INTERFACE = "eth0"
"""The name of a pod's first interface, which the CRI prescribes."""

_DEL_TIME = 30.0
_INGRESS = "kubernetes.io/ingress-bandwidth"
_EGRESS = "kubernetes.io/egress-bandwidth"
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
}


class PodNetwork:
    """Attaches pods to the network that is configured in ``config.conf_dir``.

    ``cache_dir`` must survive the daemon; it holds what DEL needs.
    """

    def __init__(self, config: NetworkConfig, cache_dir: Path) -> None:
        self._directory = Path(config.conf_dir)
        self._chain = Chain(config.bin_dirs, config.timeout)
        self._records = AttachmentRecords(cache_dir)
        self._stamp: tuple[tuple[str, int, int], ...] = ()
        self._network: NetworkList | None = None
        self._masqueraded: tuple[str, ...] | None = None
        self._lock = asyncio.Lock()

    async def ready(self) -> str:
        """Why pods can have no network now, or ""."""
        try:
            network = await self._current()
            if network.at_least(STATUS_SINCE):
                await self._chain.status(network)
        except OrlopError as error:
            return str(error)
        if missing := self._chain.missing(network):
            return f"network {network.name} needs CNI plug-ins that are not installed: {', '.join(missing)}"
        return ""

    async def attach(
        self,
        pod_id: str,
        netns: Path,
        *,
        name: str,
        namespace: str,
        uid: str,
        port_mappings: Sequence[PortMappingLike] = (),
        annotations: Mapping[str, str] | None = None,
        dns: CniDns | None = None,
    ) -> NetworkResult:
        """Give the pod its interface and addresses (CNI ADD).

        A failure or cancellation is followed by DEL, so that no address stays leased. Raises
        Unavailable naming the plug-in and its reason.
        """
        network = await self._current()
        attachment = Attachment(
            network=network,
            invocation=Invocation(
                container_id=pod_id,
                netns=str(netns),
                interface=INTERFACE,
                arguments=_arguments(pod_id, name, namespace, uid),
            ),
            capabilities=_capabilities(port_mappings, annotations or {}, dns),
        )
        self._records.save(attachment)
        try:
            outcome = await self._chain.add(attachment)
            self._records.save(_with_outcome(attachment, outcome))
            found = result.read(outcome, INTERFACE)
            await announce(netns, INTERFACE, found.ips)
            return found
        except BaseException:
            await tasks.roll_back(f"the attachment of pod {pod_id}", self._undo(attachment))
            raise

    async def _undo(self, attachment: Attachment) -> None:
        """DEL after an ADD that failed; what it cannot remove is left to ``detach``, by the record kept."""
        async with asyncio.timeout(_DEL_TIME):
            await self._chain.delete(attachment)
        self._records.forget(attachment.invocation.container_id)

    def result(self, pod_id: str) -> NetworkResult | None:
        """What attaching the pod gave, also after a restart; None when it is not attached."""
        attachment = self._records.load(pod_id)
        if attachment is None or attachment.outcome is None:
            return None
        return result.read(attachment.outcome, attachment.invocation.interface)

    async def check(self, pod_id: str) -> None:
        """Ask the plug-ins whether the pod's network is still as they left it (CNI CHECK).

        Raises Unavailable with the reason when it is not, or when the pod is not attached.
        """
        attachment = self._records.load(pod_id)
        if attachment is None or attachment.outcome is None:
            raise Unavailable(f"pod {pod_id} is not attached to a network")
        await self._chain.check(attachment)

    async def detach(self, pod_id: str, netns: Path) -> None:
        """Take the pod off the network (CNI DEL), as its own ADD put it there. Idempotent.

        ``netns`` may be gone already. Raises Unavailable when a plug-in fails; the record stays
        then, for another try.
        """
        attachment = self._records.load(pod_id)
        if attachment is None:
            return
        await self._chain.delete(_with_netns(attachment, str(netns) if netns.exists() else ""))
        self._records.forget(pod_id)

    async def _current(self) -> NetworkList:
        """The configured network, read again when a file changed. Raises Unavailable, InvalidArgument."""
        async with self._lock:
            stamp = conflist.stamp(self._directory)
            if self._network is None or stamp != self._stamp:
                self._network = conflist.load(self._directory)
                self._stamp = stamp
            if self._network is None:
                raise Unavailable(f"no network is configured: {self._directory} has no CNI configuration")
            if self._masqueraded != self._network.masquerade:
                if self._network.masquerade or self._masqueraded:
                    await masquerade.apply(self._network.name, self._network.masquerade)
                self._masqueraded = self._network.masquerade
            return self._network


def _with_outcome(attachment: Attachment, outcome: dict[str, Any]) -> Attachment:
    return Attachment(
        network=attachment.network,
        invocation=attachment.invocation,
        capabilities=attachment.capabilities,
        outcome=outcome,
    )


def _with_netns(attachment: Attachment, netns: str) -> Attachment:
    old = attachment.invocation
    invocation = Invocation(
        container_id=old.container_id, netns=netns, interface=old.interface, arguments=old.arguments
    )
    return Attachment(
        network=attachment.network,
        invocation=invocation,
        capabilities=attachment.capabilities,
        outcome=attachment.outcome,
    )


def _arguments(pod_id: str, name: str, namespace: str, uid: str) -> tuple[tuple[str, str], ...]:
    """CNI_ARGS as Kubernetes plug-ins know them."""
    return (
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", namespace),
        ("K8S_POD_NAME", name),
        ("K8S_POD_INFRA_CONTAINER_ID", pod_id),
        ("K8S_POD_UID", uid),
    )


def _capabilities(
    ports: Sequence[PortMappingLike], annotations: Mapping[str, str], dns: CniDns | None
) -> dict[str, Any]:
    """The capability arguments of the CNI conventions, as far as there is something to say."""
    found: dict[str, Any] = {}
    mappings = [
        {
            "hostPort": port.host_port,
            "containerPort": port.container_port,
            "protocol": port.protocol.lower(),
            "hostIP": port.host_ip,
        }
        for port in ports
        if port.host_port
    ]
    if mappings:
        found["portMappings"] = mappings
    if dns is not None and (dns.servers or dns.searches or dns.options):
        found["dns"] = {"servers": dns.servers, "searches": dns.searches, "options": dns.options}
    if bandwidth := _bandwidth(annotations):
        found["bandwidth"] = bandwidth
    if annotations:
        found["io.kubernetes.cri.pod-annotations"] = dict(annotations)
    return found


def _bandwidth(annotations: Mapping[str, str]) -> dict[str, int]:
    found = {}
    for key, word in ((_INGRESS, "ingress"), (_EGRESS, "egress")):
        if rate := _quantity(annotations.get(key, "")):
            found[f"{word}Rate"] = rate
            found[f"{word}Burst"] = 2**31 - 1  # bits; no limit of its own, as in other runtimes
    return found


def _quantity(text: str) -> int:
    """A Kubernetes quantity such as 10M; 0 for none. Raises PluginFailed when it is not one."""
    if not text:
        return 0
    digits = text.rstrip("kKMGTPi")
    unit = _UNITS.get(text[len(digits) :])
    try:
        if unit is None:
            raise ValueError(text)
        return int(float(digits) * unit)
    except (ValueError, OverflowError) as error:
        raise PluginFailed(f"bandwidth annotation {text[:40]!r} is not a quantity") from error
