"""All records in memory, each change in the journal before the caller goes on."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec

from orlop.errors import InvalidArgument, NotFound, OrlopError
from orlop.pods.records import (
    SHOWN_CONTAINERS,
    SHOWN_PODS,
    ContainerFilter,
    ContainerRecord,
    PodFilter,
    PodRecord,
)
from orlop.sandbox.spec import PodSpec
from orlop.value import Value

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orlop.pods.journal import Journal

log = logging.getLogger(__name__)

ID_LENGTH = 64

PodKey = tuple[str, str, str, int]

R = TypeVar("R", PodRecord, ContainerRecord)


class Ledger:
    """The pods and containers known, by id; the only writer of the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._pods: dict[str, PodRecord] = {}
        self._containers: dict[str, ContainerRecord] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._by_pod: dict[str, dict[str, None]] = {}
        self._by_key: dict[PodKey, dict[str, None]] = {}
        self._unwritten: set[str] = set()

    async def open(self) -> None:
        """Read what an earlier daemon left."""
        contents = await self._journal.open()
        self._pods = {record.id: record for record in contents.pods}
        self._containers = {record.id: record for record in contents.containers}
        for pod in contents.pods:
            self._by_key.setdefault(pod_key(pod.spec), {})[pod.id] = None
        for container in contents.containers:
            self._by_pod.setdefault(container.pod_id, {})[container.id] = None

    async def close(self) -> None:
        """Flush the journal and let go of it."""
        await self._journal.close()

    @property
    def count(self) -> int:
        """How many pods and containers are known."""
        return len(self._pods) + len(self._containers)

    def ids(self) -> set[str]:
        """The ids of all that is known."""
        return {*self._pods, *self._containers}

    # Pods

    def all_pods(self) -> list[PodRecord]:
        """Every pod, in whatever phase."""
        return list(self._pods.values())

    def pods(self, wanted: PodFilter) -> list[PodRecord]:
        """The pods to show that match ``wanted``."""
        return [
            record
            for record in self._pods.values()
            if record.phase in SHOWN_PODS
            and record.id.startswith(wanted.id)
            and (wanted.ready is None or record.ready == wanted.ready)
            and (wanted.front is None or record.spec.front == wanted.front)
            and _has_labels(record.spec.labels, wanted.labels)
        ]

    def pod(self, ref: str) -> PodRecord:
        """The pod of that id, or unique prefix of an id. Raises NotFound, InvalidArgument."""
        return _find(self._pods, ref, "pod")

    def find_pod(self, ref: str) -> PodRecord | None:
        """Like :meth:`pod`, None when there is none."""
        return _find_or_none(self._pods, ref, "pod")

    def pods_like(self, spec: PodSpec) -> list[PodRecord]:
        """Every pod of the same namespace, name, uid and attempt, in whatever phase."""
        ids = self._by_key.get(pod_key(spec), ())
        return [record for key in ids if (record := self._pods.get(key)) is not None]

    async def put_pod(self, record: PodRecord) -> PodRecord:
        """Record a pod; it is in the journal on return."""
        key = pod_key(record.spec)
        self._by_key.setdefault(key, {})[record.id] = None
        try:
            await _put(self._pods, record, self._journal.put_pod)
        finally:
            if record.id not in self._pods:
                _unlist(self._by_key, key, record.id)
        return record

    async def change_pod(self, pod_id: str, **changes: object) -> PodRecord:
        """Replace fields of a pod's record."""
        return await self.put_pod(msgspec.structs.replace(self.pod(pod_id), **changes))

    async def note_pod(self, pod_id: str, **changes: object) -> PodRecord:
        """Replace fields by what has happened, or by what is to be taken back, even if no disk takes it.

        It is shown at once, and what cannot be written now is by :meth:`write_again`. A daemon that is
        killed before that finds the earlier record: it learns again what happened, and is asked again.
        """
        record = msgspec.structs.replace(self.pod(pod_id), **changes)
        await self._note(self._pods, record, self._journal.put_pod)
        return record

    async def drop_pod(self, pod_id: str) -> None:
        """Forget a pod that is gone."""
        await self._journal.delete_pod(pod_id)
        record = self._pods.pop(pod_id, None)
        self._locks.pop(pod_id, None)
        if record is not None:
            _unlist(self._by_key, pod_key(record.spec), pod_id)

    # Containers

    def all_containers(self) -> list[ContainerRecord]:
        """Every container, in whatever phase."""
        return list(self._containers.values())

    def members(self, pod_id: str) -> list[ContainerRecord]:
        """Every container of a pod, in whatever phase."""
        ids = self._by_pod.get(pod_id, ())
        return [record for key in ids if (record := self._containers.get(key)) is not None]

    def shown_members(self, pod_id: str) -> tuple[ContainerRecord, ...]:
        """The containers of a pod that callers may see."""
        return tuple(record for record in self.members(pod_id) if record.phase in SHOWN_CONTAINERS)

    def containers(self, wanted: ContainerFilter) -> list[ContainerRecord]:
        """The containers to show that match ``wanted``."""
        return [
            record
            for record in self._containers.values()
            if record.phase in SHOWN_CONTAINERS
            and record.id.startswith(wanted.id)
            and record.pod_id.startswith(wanted.pod_id)
            and (wanted.phase is None or record.phase is wanted.phase)
            and (wanted.front is None or self._front(record) == wanted.front)
            and _has_labels(record.labels, wanted.labels)
        ]

    def _front(self, record: ContainerRecord) -> str:
        pod = self._pods.get(record.pod_id)
        return pod.spec.front if pod is not None else ""

    def container(self, ref: str) -> ContainerRecord:
        """The container of that id, or unique prefix of an id. Raises NotFound, InvalidArgument."""
        return _find(self._containers, ref, "container")

    def find_container(self, ref: str) -> ContainerRecord | None:
        """Like :meth:`container`, None when there is none."""
        return _find_or_none(self._containers, ref, "container")

    async def put_container(self, record: ContainerRecord) -> ContainerRecord:
        """Record a container; it is in the journal on return."""
        self._by_pod.setdefault(record.pod_id, {})[record.id] = None
        try:
            await _put(self._containers, record, self._journal.put_container)
        finally:
            if record.id not in self._containers:
                _unlist(self._by_pod, record.pod_id, record.id)
        return record

    async def change_container(self, container_id: str, **changes: object) -> ContainerRecord:
        """Replace fields of a container's record."""
        return await self.put_container(msgspec.structs.replace(self.container(container_id), **changes))

    async def note_container(self, container_id: str, **changes: object) -> ContainerRecord:
        """See :meth:`note_pod`."""
        record = msgspec.structs.replace(self.container(container_id), **changes)
        await self._note(self._containers, record, self._journal.put_container)
        return record

    async def put_together(self, pod: PodRecord, container: ContainerRecord) -> None:
        """Replace the records of a pod and of a container: the journal has both on return, or neither."""
        before = self._pods[pod.id], self._containers[container.id]
        self._pods[pod.id], self._containers[container.id] = pod, container
        try:
            await self._journal.put_together(pod, container)
        except Exception:
            if self._pods.get(pod.id) is pod:
                self._pods[pod.id] = before[0]
            if self._containers.get(container.id) is container:
                self._containers[container.id] = before[1]
            raise

    async def drop_container(self, container_id: str) -> None:
        """Forget a container that is gone."""
        await self._journal.delete_container(container_id)
        record = self._containers.pop(container_id, None)
        self._locks.pop(container_id, None)
        if record is not None:
            _unlist(self._by_pod, record.pod_id, container_id)

    # What could not be written

    async def _note(self, table: dict[str, R], record: R, write: Callable[[R], Awaitable[None]]) -> None:
        table[record.id] = record
        try:
            await write(record)
        except OrlopError as error:
            log.warning("%s is %s, which is not recorded yet: %s", record.id[:12], record.phase, error)
            self._unwritten.add(record.id)

    async def write_again(self) -> None:
        """Write what was noted and could not be written. Raises what the journal raises."""
        for key in tuple(self._unwritten):
            if (pod := self._pods.get(key)) is not None:
                await self._journal.put_pod(pod)
            elif (container := self._containers.get(key)) is not None:
                await self._journal.put_container(container)
            self._unwritten.discard(key)

    @asynccontextmanager
    async def locked(self, object_id: str) -> AsyncIterator[None]:
        """One change of state at a time for one pod or container."""
        async with self._locks.setdefault(object_id, asyncio.Lock()):
            yield


def pod_key(spec: PodSpec) -> PodKey:
    """What makes one pod sandbox another than the next."""
    return spec.namespace, spec.name, spec.uid, spec.attempt


K = TypeVar("K")


def _unlist(table: dict[K, dict[str, None]], key: K, object_id: str) -> None:
    ids = table.get(key, {})
    ids.pop(object_id, None)
    if not ids:
        table.pop(key, None)


async def _put(table: dict[str, R], record: R, write: Callable[[R], Awaitable[None]]) -> None:
    """Show ``record`` at once, so that a concurrent change builds on it; take it back on failure."""
    before = table.get(record.id)
    table[record.id] = record
    try:
        await write(record)
    except Exception:
        if table.get(record.id) is record:
            if before is None:
                del table[record.id]
            else:
                table[record.id] = before
        raise


def _find(table: Mapping[str, R], ref: str, kind: str) -> R:
    record = _find_or_none(table, ref, kind)
    if record is None:
        raise NotFound(f"{kind} {ref} does not exist")
    return record


def _find_or_none(table: Mapping[str, R], ref: str, kind: str) -> R | None:
    if not ref:
        raise InvalidArgument(f"the id of the {kind} is empty")
    if (record := table.get(ref)) is not None or len(ref) >= ID_LENGTH:
        return record
    matches = [record for key, record in table.items() if key.startswith(ref)]
    if len(matches) > 1:
        raise InvalidArgument(f"{kind} id {ref} is ambiguous: {len(matches)} ids begin with it")
    return matches[0] if matches else None


def _has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


def digest(request: Value) -> str:
    """A fingerprint by which equal requests are recognised."""
    return hashlib.sha256(msgspec.json.encode(request, order="deterministic")).hexdigest()
