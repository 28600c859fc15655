"""Containers of our own clients that go when they have ended, which nobody need wait for.

Who makes a container wishes for it in an annotation, ``removal.orlop.io/when-ended: "true"``. It is heeded
in pods of our own clients alone: a kubelet removes its containers itself. With a container goes the pod that
is there for it alone, and that pod's logs.

The wish is in the journal with the container. A daemon that was killed in between goes on with it, and what
cannot be removed is tried again. Whoever waits for the end still hears the exit code, for a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orlop.errors import InvalidArgument, NotFound
from orlop.host import threads
from orlop.linux.removal import remove_tree
from orlop.pods.containers import Containers
from orlop.pods.names import OWN, check_own
from orlop.pods.node import Node
from orlop.pods.records import ContainerPhase, ContainerRecord, PodRecord
from orlop.pods.sandboxes import Pods

ANNOTATION = "removal.orlop.io/when-ended"


def check(annotations: Mapping[str, str], pod: PodRecord) -> None:
    """Raises InvalidArgument for a wish that cannot be understood, or is not for that pod."""
    text = annotations.get(ANNOTATION)
    if text is None:
        return
    if text != "true":
        raise InvalidArgument(f'the annotation {ANNOTATION} is "true" or left out, not {text[:40]!r}')
    check_own(ANNOTATION, pod, "removes")


class Disposal:
    """The rule that removes what was to go when it has ended."""

    work = "the removal"
    undone = "cannot be removed yet"

    def __init__(self, node: Node, pods: Pods, containers: Containers) -> None:
        self._node = node
        self._pods = pods
        self._containers = containers

    def concerns(self, record: ContainerRecord) -> bool:
        """Whether that was wished for it."""
        return ANNOTATION in record.annotations

    async def carry_out(self, record: ContainerRecord) -> None:
        """Remove it, and the pod that is there for it alone."""
        if self._node.ends.code(record.id) is None:  # an earlier daemon has seen its end
            self._node.ends.note(record.id, record.exit_code)
        await self._node.known(record.pod_id)
        if OWN in record.labels and (pod := self._node.ledger.find_pod(record.pod_id)) is not None:
            # The logs before the record that names their place.
            await self._pods.stop(pod.id)
            await threads.call(_remove_logs, pod)
            await self._pods.remove(pod.id)
        else:
            await self._containers.remove(record.id)

    async def wait(self, ref: str) -> int:
        """The exit code of a container once it has ended, also of one that has gone. Raises NotFound."""
        known = self._node.ledger.find_container(ref)
        container_id = known.id if known is not None else ref
        record = await self._containers.ended(container_id)
        if record is not None and record.phase in (ContainerPhase.EXITED, ContainerPhase.REMOVING):
            return record.exit_code
        if (code := self._node.ends.code(container_id)) is None:
            raise NotFound(f"container {ref[:13]} does not exist, or has not run")
        return code


def _remove_logs(pod: PodRecord) -> None:
    """The directory that a client of ours has made for the pod's logs, and no other."""
    directory = Path(pod.spec.log_directory)
    if pod.spec.log_directory and directory.name == f"{pod.spec.name}_{pod.spec.uid}":
        remove_tree(directory)
