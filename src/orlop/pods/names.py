"""Names that people give, and change: of the pods of our own clients and of the containers in them.

A name that was given is a label, which lists show. What Kubernetes calls a pod or a container never changes,
nor do the places of logs and volumes, which are called by that. Among these pods and containers a name is
given once, as with podman; what a kubelet makes is not looked at.

A name is found to be free in the same step in which it is recorded, without anybody in between: of two calls
for one name one gets it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from orlop.pods.node import Node
from orlop.pods.records import ContainerPhase, ContainerRecord, PodPhase, PodRecord
from orlop.pods.requests import ContainerRequest
from orlop.sandbox.spec import PodSpec

OWN = "io.orlop.cli"
"""Label of a pod of our own clients, and of the container that a pod is there for alone."""

GIVEN = "io.orlop.name"
"""Label of a container in a pod for several, whose name was changed."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")


class NameHolder(NamedTuple):
    """Who has a name. ``container_id`` is "" for a pod."""

    pod_uid: str
    container_id: str
    container_name: str
    what: str


def check_own(annotation: str, pod: PodRecord, verb: str) -> None:
    """Raises InvalidArgument for a wish about containers of a pod that no client of ours has made."""
    if OWN not in pod.spec.labels:
        raise InvalidArgument(
            f"the annotation {annotation} is for pods of Orlop's own clients: "
            f"who made pod {pod.spec.namespace}/{pod.spec.name} {verb} its containers"
        )


def of_container(record: ContainerRecord) -> str:
    """What people call a container."""
    return record.labels.get(OWN) or record.labels.get(GIVEN) or record.name


def of_pod(record: PodRecord) -> str:
    """What people call a pod."""
    return record.spec.labels.get(OWN) or record.spec.name


class Names:
    """The names of the pods and containers of ``node``."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def check_pod(self, spec: PodSpec) -> None:
        """Raise AlreadyExists for a pod whose name is another's; one that is made anew is no other."""
        if name := spec.labels.get(OWN):
            self._check(name, lambda holder: holder.pod_uid == spec.uid)

    def check_container(self, pod: PodRecord, request: ContainerRequest) -> None:
        """The same for a container; with the name of one in its pod it may be the next attempt of that."""
        if OWN not in pod.spec.labels or OWN in request.labels:
            return
        name = request.labels.get(GIVEN) or request.name
        again = (pod.spec.uid, request.name)
        self._check(name, lambda holder: (holder.pod_uid, holder.container_name) == again)

    async def rename(self, ref: str, name: str) -> None:
        """Give a container another name, and its pod if that is there for it alone.

        Raises InvalidArgument for what is no name, AlreadyExists for one that is taken, FailedPrecondition
        for a container of a kubelet.
        """
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"{name[:80]!r} is no name: write letters, digits, _, . and -, the first of the first two"
            )
        await self._node.known_of(ref)
        record = self._node.container(ref)
        pod = self._node.pod(record.pod_id)
        what = f"container {of_container(record)} ({record.id[:12]})"
        if OWN not in pod.spec.labels:
            raise FailedPrecondition(
                f"{what} cannot be renamed: who made it, a kubelet for example, knows it by its name"
            )
        if name == of_container(record):
            raise AlreadyExists(f"{what} has that name already")
        # From here to the record nobody else has a turn.
        if OWN not in record.labels:
            self._check(name, lambda holder: holder.container_id == record.id)
            labels = {**record.labels, GIVEN: name}
            await self._node.ledger.put_container(msgspec.structs.replace(record, labels=labels))
            return
        self._check(name, lambda holder: holder.pod_uid == pod.spec.uid and not holder.container_id)
        spec = msgspec.structs.replace(pod.spec, labels={**pod.spec.labels, OWN: name})
        await self._node.ledger.put_together(
            msgspec.structs.replace(pod, spec=spec),
            msgspec.structs.replace(record, labels={**record.labels, OWN: name}),
        )

    def _check(self, name: str, is_own: Callable[[NameHolder], bool]) -> None:
        for holder in self._holders(name):
            if not is_own(holder):
                raise AlreadyExists(
                    f"the name {name} is taken by {holder.what}: choose another one, or remove that first"
                )

    def _holders(self, name: str) -> Iterator[NameHolder]:
        ledger = self._node.ledger
        for pod in ledger.all_pods():
            if OWN not in pod.spec.labels or pod.phase is PodPhase.REMOVING:
                continue
            if of_pod(pod) == name:
                yield NameHolder(pod.spec.uid, "", "", f"pod {pod.id[:12]}")
            for one in ledger.members(pod.id):
                # One that has its pod for itself has the pod's name.
                if OWN in one.labels or one.phase is ContainerPhase.REMOVING:
                    continue
                if of_container(one) == name:
                    yield NameHolder(pod.spec.uid, one.id, one.name, f"container {one.id[:12]}")
