"""Which VM a container is to be in: one of its own, or one that is there. Pure look-ups.

A caller says it in one of three ways: it names a namespace of a process that stands in for a container, the
sandbox container of the pod, or a network namespace that a VM has taken over. The last is all that there is
where a caller keeps a pod's namespaces itself and makes no sandbox container: then the first container
of the pod has made the VM.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from orlop.bundle import translate
from orlop.bundle.document import OciConfig
from orlop.bundle.roles import Role
from orlop.errors import FailedPrecondition
from orlop.oci.model import Bundle, bundle_of
from orlop.pods.records import ContainerRecord

_IN_A_VM = ("ipc", "pid", "mount")
"""Namespaces that are another's only in the VM of that one."""


class Placed(NamedTuple):
    """Where a container belongs.

    ``pod_id`` is the VM, "" for one that is to be made; ``target`` is the container whose processes it
    sees, "" for its own; ``turn`` names the VM, there or not, to those that have to wait for one another.
    """

    pod_id: str
    target: str
    turn: str


def turn_of(record: ContainerRecord, bundle: Bundle) -> str:
    """What :attr:`Placed.turn` is for the VM of a container that is there."""
    return bundle.network or record.pod_id


def place(
    config: OciConfig, bundle: Bundle, records: Iterable[ContainerRecord], running: Collection[str]
) -> Placed:
    """Where a container belongs. ``running`` are the ids of the pods that run.

    Raises FailedPrecondition when there is no such VM, or when there are several.
    """
    others = [(record, bundle_of(record)) for record in records]
    asked = translate.joined(config)
    named = {
        one.companion.pid: (record, one)
        for record, one in others
        if one.companion.pid in asked.values() and one.companion.alive
    }
    for kind, pid in asked.items():
        if kind in _IN_A_VM and pid not in named:
            raise FailedPrecondition(
                f"it asks for the {kind} namespace of process {pid}, which is no container in a VM"
            )
    there = [(record, one) for record, one in others if record.pod_id in running]
    around = list(_around(bundle, there))
    if not around and any(_is_sandbox(one, bundle) for _, one in others):
        raise FailedPrecondition(f"its sandbox {bundle.sandbox} does not run any more")
    found = {record.pod_id: turn_of(record, one) for record, one in (*named.values(), *around)}
    if len(found) > 1:
        raise FailedPrecondition("it asks for namespaces of several containers, which are in several VMs")
    pod_id, turn = next(iter(found.items()), ("", bundle.network))
    pid = asked.get("pid", 0)
    return Placed(pod_id, named[pid][0].id if pid in named else "", turn)


def _around(
    bundle: Bundle, others: Iterable[tuple[ContainerRecord, Bundle]]
) -> Iterator[tuple[ContainerRecord, Bundle]]:
    """Those whose VM it shares though it names no process of theirs."""
    for record, one in others:
        if one.network == bundle.network or _is_sandbox(one, bundle):
            yield record, one


def _is_sandbox(other: Bundle, bundle: Bundle) -> bool:
    """Whether the other one is the sandbox container that this one's caller has named."""
    if other.role is not Role.SANDBOX or bundle.role is not Role.MEMBER or not bundle.sandbox:
        return False
    return (other.root, other.sandbox) == (bundle.root, bundle.sandbox)
