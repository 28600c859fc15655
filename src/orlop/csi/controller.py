"""The Controller service: volumes and snapshots of this machine, by the rules of CSI."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn, Protocol, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from orlop.csi import asked, names
from orlop.csi.api import csi_v1_pb2 as pb
from orlop.errors import (
    Aborted,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unimplemented,
)
from orlop.volumes.records import Origin, SnapshotRecord, VolumeRecord
from orlop.volumes.store import MOST, VolumeStore

_TOKEN = "after:"


class Named(Protocol):
    """What lists are made of."""

    @property
    def id(self) -> str:
        """Its id, by which lists are ordered."""


N = TypeVar("N", bound=Named)


class ControllerCalls:
    """The Controller service."""

    def __init__(self, store: VolumeStore, node: str) -> None:
        self._store = store
        self._node = node

    async def controller_get_capabilities(
        self, request: pb.ControllerGetCapabilitiesRequest
    ) -> pb.ControllerGetCapabilitiesResponse:
        """What of the service there is for a cluster.

        Not EXPAND_VOLUME: external-resizer knows no nodes, and would ask one driver for the volumes of all of
        them. Without it the kubelet of the right node is who asks, and NodeExpandVolume does it all.
        """
        kinds = pb.ControllerServiceCapability.RPC
        known = (
            kinds.CREATE_DELETE_VOLUME,
            kinds.LIST_VOLUMES,
            kinds.GET_CAPACITY,
            kinds.CREATE_DELETE_SNAPSHOT,
            kinds.LIST_SNAPSHOTS,
            kinds.CLONE_VOLUME,
            kinds.GET_VOLUME,
            kinds.SINGLE_NODE_MULTI_WRITER,
        )
        return pb.ControllerGetCapabilitiesResponse(
            capabilities=[pb.ControllerServiceCapability(rpc=kinds(type=one)) for one in known]
        )

    # Volumes

    async def create_volume(self, request: pb.CreateVolumeRequest) -> pb.CreateVolumeResponse:
        """Make a volume, empty or from another one or a snapshot."""
        asked.required(request.name, "name")
        ways = asked.wishes(request.volume_capabilities)
        whole = asked.whole(request.parameters)
        if request.mutable_parameters:
            raise InvalidArgument("there are no mutable parameters")
        self._check_topology(request.accessibility_requirements)
        origin = _origin(request.volume_content_source)
        if origin is not None:
            try:
                self._check_origin(origin, ways[0], whole, request.capacity_range)
            except NotFound as error:
                if names.CLAIM not in request.parameters:
                    raise
                # The cluster has seen it, so it is on another node: its scheduler can choose again.
                raise ResourceExhausted(
                    f"{error} on node {self._node}: a copy is made on the node of its source, "
                    "where the pod has to run"
                ) from error
        made = await self._store.create(
            request.name,
            asked.size(request.capacity_range),
            content=ways[0].content,
            whole=bool(whole) and ways[0].content == "filesystem",
            origin=origin,
        )
        asked.check_limit(made, request.capacity_range)
        return pb.CreateVolumeResponse(volume=self._volume(made))

    async def delete_volume(self, request: pb.DeleteVolumeRequest) -> pb.DeleteVolumeResponse:
        """Remove a volume; one that is not there is removed."""
        await self._store.remove(asked.required(request.volume_id, "volume_id"))
        return pb.DeleteVolumeResponse()

    async def validate_volume_capabilities(
        self, request: pb.ValidateVolumeCapabilitiesRequest
    ) -> pb.ValidateVolumeCapabilitiesResponse:
        """Whether a volume can be used in those ways."""
        asked.required(request.volume_id, "volume_id")
        if not request.volume_capabilities:
            raise InvalidArgument("volume_capabilities are missing")
        volume = self._store.volume(request.volume_id)
        try:
            ways = asked.wishes(request.volume_capabilities)
        except InvalidArgument as error:
            return pb.ValidateVolumeCapabilitiesResponse(message=str(error))
        if ways[0].content != volume.content:
            said = f"volume {volume.id} is a {volume.content}, not a {ways[0].content}"
            return pb.ValidateVolumeCapabilitiesResponse(message=said)
        return pb.ValidateVolumeCapabilitiesResponse(
            confirmed=pb.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
            )
        )

    async def list_volumes(self, request: pb.ListVolumesRequest) -> pb.ListVolumesResponse:
        """Volumes by id, some at a time."""
        found, token = page(self._store.volumes(), request.max_entries, request.starting_token)
        entries = [pb.ListVolumesResponse.Entry(volume=self._volume(one)) for one in found]
        return pb.ListVolumesResponse(entries=entries, next_token=token)

    async def controller_get_volume(
        self, request: pb.ControllerGetVolumeRequest
    ) -> pb.ControllerGetVolumeResponse:
        """One volume."""
        found = self._store.volume(asked.required(request.volume_id, "volume_id"))
        return pb.ControllerGetVolumeResponse(volume=self._volume(found))

    async def get_capacity(self, request: pb.GetCapacityRequest) -> pb.GetCapacityResponse:
        """Bytes that are free on this node, none on others."""
        answer = pb.GetCapacityResponse()
        segments = request.accessible_topology.segments
        if not segments or segments.get(names.TOPOLOGY) == self._node:
            answer.available_capacity = await self._store.available()
        # Where this is told a scheduler looks at nothing else.
        answer.maximum_volume_size.value = min(MOST, answer.available_capacity)
        return answer

    async def controller_expand_volume(
        self, request: pb.ControllerExpandVolumeRequest
    ) -> pb.ControllerExpandVolumeResponse:
        """Make a volume larger. For the command line: a cluster does not call it."""
        asked.required(request.volume_id, "volume_id")
        if not request.HasField("capacity_range"):
            raise InvalidArgument("capacity_range is missing")
        found = await self._store.grow(request.volume_id, asked.size(request.capacity_range))
        asked.check_grown(found, request.capacity_range)
        # A guest sees by itself how large its disk is.
        return pb.ControllerExpandVolumeResponse(
            capacity_bytes=found.size, node_expansion_required=not found.whole
        )

    # Snapshots

    async def create_snapshot(self, request: pb.CreateSnapshotRequest) -> pb.CreateSnapshotResponse:
        """Keep what a volume is now."""
        asked.required(request.name, "name")
        asked.required(request.source_volume_id, "source_volume_id")
        asked.check_snapshot(request.parameters)
        made = await self._store.take_snapshot(request.name, request.source_volume_id)
        return pb.CreateSnapshotResponse(snapshot=_snapshot(made))

    async def delete_snapshot(self, request: pb.DeleteSnapshotRequest) -> pb.DeleteSnapshotResponse:
        """Remove a snapshot; one that is not there is removed."""
        await self._store.remove_snapshot(asked.required(request.snapshot_id, "snapshot_id"))
        return pb.DeleteSnapshotResponse()

    async def list_snapshots(self, request: pb.ListSnapshotsRequest) -> pb.ListSnapshotsResponse:
        """Snapshots by id, some at a time; all, or those of a volume, or one."""
        wanted = [
            one
            for one in self._store.snapshots()
            if request.snapshot_id in ("", one.id) and request.source_volume_id in ("", one.volume)
        ]
        found, token = page(wanted, request.max_entries, request.starting_token)
        entries = [pb.ListSnapshotsResponse.Entry(snapshot=_snapshot(one)) for one in found]
        return pb.ListSnapshotsResponse(entries=entries, next_token=token)

    # What a volume of one machine has no use for

    async def controller_publish_volume(self, request: pb.ControllerPublishVolumeRequest) -> NoReturn:
        """A volume is where it is."""
        raise Unimplemented("volumes are not attached to nodes: each is on one")

    async def controller_unpublish_volume(self, request: pb.ControllerUnpublishVolumeRequest) -> NoReturn:
        """As :meth:`controller_publish_volume`."""
        raise Unimplemented("volumes are not attached to nodes: each is on one")

    async def controller_modify_volume(self, request: pb.ControllerModifyVolumeRequest) -> NoReturn:
        """There is nothing to modify."""
        raise Unimplemented("volumes have no parameters that can be modified")

    def _volume(self, found: VolumeRecord) -> pb.Volume:
        volume = pb.Volume(
            volume_id=found.id,
            capacity_bytes=found.size,
            accessible_topology=[pb.Topology(segments={names.TOPOLOGY: self._node})],
        )
        if found.content == "filesystem":
            volume.volume_context[names.MOUNTED_BY] = "guest" if found.whole else "host"
        if found.origin is not None and found.origin.kind == "volume":
            volume.content_source.volume.volume_id = found.origin.id
        elif found.origin is not None:
            volume.content_source.snapshot.snapshot_id = found.origin.id
        return volume

    def _check_topology(self, wanted: pb.TopologyRequirement) -> None:
        places = [one.segments.get(names.TOPOLOGY) for one in wanted.requisite]
        if places and self._node not in places:
            raise ResourceExhausted(f"volumes made here are on node {self._node}, which is not asked for")

    def _check_origin(
        self, origin: Origin, way: asked.Wish, whole: bool | None, wanted: pb.CapacityRange
    ) -> None:
        """A copy is of the kind of what it is a copy of. Raises NotFound, InvalidArgument, OutOfRange."""
        begun: VolumeRecord | SnapshotRecord
        begun = (self._store.volume if origin.kind == "volume" else self._store.snapshot)(origin.id)
        if begun.content != way.content:
            raise InvalidArgument(f"a copy of {origin.kind} {origin.id} is a {begun.content}")
        if begun.content == "filesystem" and whole not in (None, begun.whole):
            raise InvalidArgument(f"a copy of {origin.kind} {origin.id} is mounted by the same kernel")
        if wanted.limit_bytes and wanted.limit_bytes < begun.size:
            raise OutOfRange(f"a copy of {origin.kind} {origin.id} has at least {begun.size} bytes")


def page(found: Sequence[N], most: int, token: str) -> tuple[Iterable[N], str]:
    """As many as ``most`` (0: all) after those that ``token`` stands for; and the next token, "" at the end.

    What comes and goes between two calls moves nothing else. Raises Aborted for a token that is none.
    """
    if most < 0:
        raise InvalidArgument("max_entries is negative")
    if token and not token.startswith(_TOKEN):
        raise Aborted(f"the token {token[:64]!a} is not one of ours; begin without")
    after = token.removeprefix(_TOKEN)
    rest = [one for one in found if one.id > after]
    shown = rest[:most] if most else rest
    return shown, f"{_TOKEN}{shown[-1].id}" if len(shown) < len(rest) else ""


def _origin(wanted: pb.VolumeContentSource) -> Origin | None:
    kind = wanted.WhichOneof("type")
    if kind == "snapshot":
        return Origin(kind="snapshot", id=_given(wanted.snapshot.snapshot_id, "snapshot"))
    if kind == "volume":
        return Origin(kind="volume", id=_given(wanted.volume.volume_id, "volume"))
    return None


def _given(name: str, what: str) -> str:
    if not name:
        raise NotFound(f"the {what} to copy is not named")
    return name


def _snapshot(found: SnapshotRecord) -> pb.Snapshot:
    made = Timestamp()
    made.FromNanoseconds(found.created_at)
    return pb.Snapshot(
        snapshot_id=found.id,
        source_volume_id=found.volume,
        size_bytes=found.size,
        creation_time=made,
        ready_to_use=True,
    )
