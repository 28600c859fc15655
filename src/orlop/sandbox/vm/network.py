"""How a VM gets the network of its pod.

In the namespace that the VM was made with, the CNI plug-ins make an interface, which is joined with the
VM's tap. Or the pod brings a namespace that somebody else made and set up: then the tap moves there,
and at the end the interface is given back to it as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orlop.net import outside
from orlop.net.announce import announce
from orlop.net.network import INTERFACE, PodNetwork
from orlop.net.tap import described, join_tap
from orlop.sandbox.spec import PodSpec
from orlop.sandbox.vm.clone import TAP, Clone
from orlop.sandbox.vm.files import PodFile
from orlop.wire.values import Interface


async def attach(network: PodNetwork, spec: PodSpec, netns: Path) -> None:
    """Let the plug-ins make the pod's interface, unless it brings its own. Raises Unavailable."""
    if spec.netns:
        return
    await network.attach(
        spec.id,
        netns,
        name=spec.name,
        namespace=spec.namespace,
        uid=spec.uid,
        port_mappings=spec.port_mappings,
        annotations=spec.annotations,
    )


async def look(spec: PodSpec, clone: Clone, remember: Callable[[str], None]) -> Interface | None:
    """What the guest is to take over, if there is something; for :func:`join` afterwards.

    ``remember`` is told the name of an interface from outside before anything is done to it. Raises
    NotFound, InvalidArgument, FailedPrecondition for a namespace that cannot be used, or Internal.
    """
    at = clone.machine.network_at
    if not spec.netns:
        return await described(clone.netns, INTERFACE, at)
    netns = await clone.pin_outside(Path(spec.netns))
    interface = await outside.interface(netns)
    if not interface:
        return None
    await outside.check_free(netns, interface)
    remember(interface)
    return await described(netns, interface, at)


async def join(spec: PodSpec, clone: Clone, found: Interface | None) -> None:
    """Join the VM with the pod's interface that was ``found``.

    Most of it is waiting for the kernel, which moves a tap to another namespace when no processor can see
    it any more: the guest can take the interface over meanwhile. Raises FailedPrecondition, Internal.
    """
    if spec.netns:
        await clone.enter_outside()
    if found is not None:
        await join_tap(clone.netns, found.name, tap=TAP)
        if spec.netns:
            await announce(clone.netns, found.name, [cidr.partition("/")[0] for cidr in found.addresses])


async def detach(network: PodNetwork, pod: PodFile, netns: Path) -> None:
    """Take the pod off its network (see :meth:`PodNetwork.detach`), or give back what was from outside."""
    if pod.interface:
        await outside.part(netns, pod.interface)
    await network.detach(pod.pod_id, netns)
