"""The engine's observer that asks and tells the plug-ins, each in the order of its index."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec

from orlop.errors import FailedPrecondition, OrlopError
from orlop.host import threads
from orlop.nri import describe, limits
from orlop.nri.adjust import Adjuster
from orlop.nri.api import nri_v1alpha1_pb2 as pb
from orlop.nri.claims import Claims
from orlop.nri.plugin import Plugin
from orlop.pods.observer import Adjusted, Check, Observer, Updated, WantedLimits
from orlop.pods.records import ContainerRecord, PodRecord
from orlop.pods.service import PodService
from orlop.sandbox.spec import ContainerSpec, Resources

log = logging.getLogger(__name__)


class Adaptation(Observer):
    """The plug-ins there are, between them and the engine."""

    def __init__(self, pods: PodService) -> None:
        self._pods = pods
        self._plugins: list[Plugin] = []
        # What every plug-in was asked about and no list shows yet: one that comes now must hear of it.
        self._new_pods: dict[str, PodRecord] = {}
        self._new_containers: dict[str, ContainerRecord] = {}

    @property
    def listens(self) -> bool:
        """See ``Observer``. One that comes later must be told of what is being made now."""
        return True

    @property
    def plugins(self) -> list[str]:
        """The names of all, in their order."""
        return [plugin.name for plugin in self._plugins]

    async def admit(self, plugin: Plugin) -> None:
        """Tell a plug-in what there is, and everything that happens from then on.

        Raises what it answers; it is dropped then.
        """
        updates: Iterable[pb.ContainerUpdate] = ()
        async with plugin.turn:
            # What happens meanwhile waits for its turn; no await between the list and being on it.
            self._plugins.append(plugin)
            self._plugins.sort(key=lambda one: one.index)
            pods, containers = self._known()
            try:
                updates = await plugin.synchronize(pods, containers)
            except BaseException as error:
                self.forget(plugin)
                await plugin.drop(str(error))
                raise
        log.info("plug-in %s is connected; the order is %s", plugin.name, ", ".join(self.plugins))
        await self._change(plugin, updates)

    def forget(self, plugin: Plugin) -> None:
        """A plug-in is no more."""
        if plugin in self._plugins:
            self._plugins.remove(plugin)

    async def update_containers(
        self, plugin: Plugin, request: pb.UpdateContainersRequest
    ) -> pb.UpdateContainersResponse:
        """What a plug-in wants changed of its own accord; the answer has what failed."""
        if request.evict:
            log.warning("plug-in %s wants containers to end, which Orlop leaves to the kubelet", plugin.name)
        return pb.UpdateContainersResponse(failed=await self._change(plugin, request.update))

    def _known(self) -> tuple[list[pb.PodSandbox], list[pb.Container]]:
        shown_pods, shown_containers = self._pods.known()
        pods = self._new_pods | {record.id: record for record in shown_pods}
        containers = self._new_containers | {record.id: record for record in shown_containers}
        return (
            [describe.pod(record) for record in pods.values()],
            [describe.container(record) for record in containers.values()],
        )

    async def _each(self, event: pb.Event.ValueType) -> AsyncIterator[Plugin]:
        """Those that want the event, also one that comes meanwhile; none twice."""
        seen: set[Plugin] = set()
        while (plugin := next((one for one in self._plugins if one not in seen), None)) is not None:
            seen.add(plugin)
            if plugin.wants(event):
                yield plugin

    async def _ask(self, event: pb.Event.ValueType, request: Any, reply: Any) -> None:
        async for plugin in self._each(event):
            await plugin.ask(event, request, reply)

    async def _tell(self, event: pb.Event.ValueType, request: Any, reply: Any) -> None:
        """Each hears of it, whatever another one says."""
        async for plugin in self._each(event):
            try:
                await plugin.ask(event, request, reply)
            except OrlopError as error:
                log.warning("%s", error)

    # Pods

    async def run_pod(self, pod: PodRecord) -> None:
        """See ``Observer``."""
        request = pb.RunPodSandboxRequest(pod=describe.pod(pod))
        await self._ask(pb.RUN_POD_SANDBOX, request, pb.RunPodSandboxResponse)
        self._new_pods[pod.id] = pod

    async def pod_ready(self, pod: PodRecord) -> None:
        """See ``Observer``."""
        self._new_pods.pop(pod.id, None)

    async def update_pod(self, pod: PodRecord, overhead: Resources, resources: Resources) -> None:
        """See ``Observer``."""
        request = pb.UpdatePodSandboxRequest(
            pod=describe.pod(pod),
            overhead_linux_resources=describe.resources(overhead),
            linux_resources=describe.resources(resources),
        )
        await self._ask(pb.UPDATE_POD_SANDBOX, request, pb.UpdatePodSandboxResponse)

    async def pod_updated(self, pod: PodRecord) -> None:
        """See ``Observer``."""
        request = pb.PostUpdatePodSandboxRequest(pod=describe.pod(pod))
        await self._tell(pb.POST_UPDATE_POD_SANDBOX, request, pb.PostUpdatePodSandboxResponse)

    async def pod_stopped(self, pod: PodRecord) -> None:
        """See ``Observer``."""
        request = pb.StopPodSandboxRequest(pod=describe.pod(pod))
        await self._tell(pb.STOP_POD_SANDBOX, request, pb.StopPodSandboxResponse)

    async def pod_removed(self, pod: PodRecord) -> None:
        """See ``Observer``."""
        self._new_pods.pop(pod.id, None)
        request = pb.RemovePodSandboxRequest(pod=describe.pod(pod))
        await self._tell(pb.REMOVE_POD_SANDBOX, request, pb.RemovePodSandboxResponse)

    # Containers

    async def create(self, pod: PodRecord, container: ContainerRecord, check: Check) -> Adjusted:
        """See ``Observer``. What the pod's handler cannot make is an error that names the plug-in."""
        adjuster = Adjuster(container.spec)
        updates = _Updates(adjuster.claims)
        whole, asked_for = pb.ContainerAdjustment(), list[pb.ContainerUpdate]()
        consulted = []
        record = container
        async for plugin in self._each(pb.CREATE_CONTAINER):
            request = pb.CreateContainerRequest(pod=describe.pod(pod), container=describe.container(record))
            answer = await plugin.ask(pb.CREATE_CONTAINER, request, pb.CreateContainerResponse)
            consulted.append(pb.PluginInstance(name=plugin.base, index=plugin.index))
            if answer is None:
                continue
            if answer.HasField("adjust"):
                await threads.call(adjuster.apply, answer.adjust, plugin.name)
                whole.MergeFrom(answer.adjust)
                await _checked(record.spec, adjuster.spec, check, plugin.name)
                record = msgspec.structs.replace(container, spec=adjuster.spec)
            asked_for += answer.update
            updates.take(answer.update, plugin.name, creating=container.id)
        # Before anything is awaited: a plug-in that comes from here on was not asked, and is told.
        self._new_containers[container.id] = record
        if any(plugin.wants(pb.VALIDATE_CONTAINER_ADJUSTMENT) for plugin in self._plugins):
            judged = pb.ValidateContainerAdjustmentRequest(
                pod=describe.pod(pod),
                container=describe.container(container),
                adjust=whole,
                update=asked_for,
                owners=adjuster.claims.message(),
                plugins=consulted,
            )
            await self._judge(judged)
        return Adjusted(spec=record.spec, cdi_devices=adjuster.cdi_devices, updates=updates.all())

    async def _judge(self, request: pb.ValidateContainerAdjustmentRequest) -> None:
        event, reply = pb.VALIDATE_CONTAINER_ADJUSTMENT, pb.ValidateContainerAdjustmentResponse
        async for plugin in self._each(event):
            answer = await plugin.ask(event, request, reply)
            # One that judges and does not answer has not agreed.
            if answer is None:
                raise FailedPrecondition(f"plug-in {plugin.name}, which judges adjustments, did not answer")
            if answer.reject:
                raise FailedPrecondition(
                    f"plug-in {plugin.name} rejects what others adjust: {answer.reason[:1024]}"
                )

    async def created(self, pod: PodRecord, container: ContainerRecord) -> None:
        """See ``Observer``."""
        self._new_containers.pop(container.id, None)
        await self._tell_of(pb.POST_CREATE_CONTAINER, pb.PostCreateContainerRequest, pod, container)

    async def start(self, pod: PodRecord, container: ContainerRecord) -> None:
        """See ``Observer``."""
        request = pb.StartContainerRequest(pod=describe.pod(pod), container=describe.container(container))
        await self._ask(pb.START_CONTAINER, request, pb.StartContainerResponse)

    async def started(self, pod: PodRecord, container: ContainerRecord) -> None:
        """See ``Observer``."""
        await self._tell_of(pb.POST_START_CONTAINER, pb.PostStartContainerRequest, pod, container)

    async def update(self, pod: PodRecord, container: ContainerRecord, resources: Resources) -> Updated:
        """See ``Observer``."""
        updates = _Updates(Claims(), container.id, resources)
        async for plugin in self._each(pb.UPDATE_CONTAINER):
            request = pb.UpdateContainerRequest(
                pod=describe.pod(pod),
                container=describe.container(container),
                linux_resources=describe.resources(updates.own),
            )
            answer = await plugin.ask(pb.UPDATE_CONTAINER, request, pb.UpdateContainerResponse)
            if answer is not None:
                updates.take(answer.update, plugin.name)
        return Updated(resources=updates.own, updates=updates.all())

    async def updated(self, pod: PodRecord, container: ContainerRecord) -> None:
        """See ``Observer``."""
        await self._tell_of(pb.POST_UPDATE_CONTAINER, pb.PostUpdateContainerRequest, pod, container)

    async def stopped(self, pod: PodRecord, container: ContainerRecord) -> tuple[WantedLimits, ...]:
        """See ``Observer``."""
        self._new_containers.pop(container.id, None)
        updates = _Updates(Claims())
        request = pb.StopContainerRequest(pod=describe.pod(pod), container=describe.container(container))
        async for plugin in self._each(pb.STOP_CONTAINER):
            try:
                answer = await plugin.ask(pb.STOP_CONTAINER, request, pb.StopContainerResponse)
                if answer is not None:
                    updates.take(answer.update, plugin.name)
            except OrlopError as error:
                log.warning("%s", error)
        return updates.all()

    async def removed(self, pod: PodRecord, container: ContainerRecord) -> None:
        """See ``Observer``."""
        await self._tell_of(pb.REMOVE_CONTAINER, pb.RemoveContainerRequest, pod, container)

    async def _tell_of(
        self, event: pb.Event.ValueType, kind: Any, pod: PodRecord, container: ContainerRecord
    ) -> None:
        if not self._plugins:
            return
        request = kind(pod=describe.pod(pod), container=describe.container(container))
        reply = getattr(pb, kind.__name__.removesuffix("Request") + "Response")
        await self._tell(event, request, reply)

    async def _change(self, plugin: Plugin, wanted: Iterable[pb.ContainerUpdate]) -> list[pb.ContainerUpdate]:
        failed = []
        for one in wanted:
            try:
                asked, claims = one.linux.resources, Claims()
                resources = limits.combined(
                    Resources(), asked, claims, container=one.container_id, plugin=plugin.name
                )
                await self._pods.change_container(one.container_id, resources)
            except OrlopError as error:
                log.info("plug-in %s: container %s: %s", plugin.name, one.container_id[:12], error)
                if not one.ignore_failure:
                    failed.append(one)
        return failed


class _Updates:
    """What plug-ins want of containers that exist, in one request; ``own`` is that which it is about."""

    def __init__(self, claims: Claims, container: str = "", resources: Resources | None = None) -> None:
        self._claims = claims
        self._container = container
        self.own = resources or Resources()
        self._others: dict[str, WantedLimits] = {}

    def take(self, asked: Iterable[pb.ContainerUpdate], plugin: str, creating: str = "") -> None:
        """Raises FailedPrecondition, InvalidArgument naming the plug-in."""
        for one in asked:
            if one.container_id == creating or not one.container_id:
                raise FailedPrecondition(f"plug-in {plugin} wants a container updated that is being made")
            before = self._others.get(one.container_id)
            own = one.container_id == self._container
            old = self.own if own else before.resources if before is not None else Resources()
            new = limits.combined(
                old, one.linux.resources, self._claims, container=one.container_id, plugin=plugin
            )
            if own:
                self.own = new
                continue
            optional = one.ignore_failure and (before is None or before.optional)
            self._others[one.container_id] = WantedLimits(
                container_id=one.container_id, resources=new, optional=optional
            )

    def all(self) -> tuple[WantedLimits, ...]:
        """Those of other containers."""
        return tuple(self._others.values())


async def _checked(before: ContainerSpec, after: ContainerSpec, check: Check, plugin: str) -> None:
    """Blame the plug-in for a container that could be made without it."""
    try:
        await check(after)
    except OrlopError as error:
        await check(before)
        raise type(error)(f"plug-in {plugin}: {error}") from error
