"""The Node and Identity services: volumes where pods find them, and who serves them."""

from __future__ import annotations

import orlop
from orlop.csi import asked, names
from orlop.csi.api import csi_v1_pb2 as pb
from orlop.errors import InvalidArgument
from orlop.volumes.publisher import Publisher
from orlop.volumes.store import VolumeStore


class IdentityCalls:
    """The Identity service."""

    async def get_plugin_info(self, request: pb.GetPluginInfoRequest) -> pb.GetPluginInfoResponse:
        """The driver's name and version."""
        return pb.GetPluginInfoResponse(name=names.DRIVER, vendor_version=orlop.__version__)

    async def get_plugin_capabilities(
        self, request: pb.GetPluginCapabilitiesRequest
    ) -> pb.GetPluginCapabilitiesResponse:
        """Which services there are."""
        service, growth = pb.PluginCapability.Service, pb.PluginCapability.VolumeExpansion
        return pb.GetPluginCapabilitiesResponse(
            capabilities=[
                pb.PluginCapability(service=service(type=service.CONTROLLER_SERVICE)),
                pb.PluginCapability(service=service(type=service.VOLUME_ACCESSIBILITY_CONSTRAINTS)),
                pb.PluginCapability(volume_expansion=growth(type=growth.ONLINE)),
            ]
        )

    async def probe(self, request: pb.ProbeRequest) -> pb.ProbeResponse:
        """Ready since it answers."""
        answer = pb.ProbeResponse()
        answer.ready.value = True
        return answer


class NodeServiceCalls:
    """The Node service."""

    def __init__(self, store: VolumeStore, publisher: Publisher, node: str) -> None:
        self._store = store
        self._publisher = publisher
        self._node = node

    async def node_get_capabilities(
        self, request: pb.NodeGetCapabilitiesRequest
    ) -> pb.NodeGetCapabilitiesResponse:
        """What of the service there is."""
        kinds = pb.NodeServiceCapability.RPC
        known = (
            kinds.STAGE_UNSTAGE_VOLUME,
            kinds.GET_VOLUME_STATS,
            kinds.EXPAND_VOLUME,
            kinds.SINGLE_NODE_MULTI_WRITER,
        )
        return pb.NodeGetCapabilitiesResponse(
            capabilities=[pb.NodeServiceCapability(rpc=kinds(type=one)) for one in known]
        )

    async def node_get_info(self, request: pb.NodeGetInfoRequest) -> pb.NodeGetInfoResponse:
        """Which node this is."""
        return pb.NodeGetInfoResponse(
            node_id=self._node, accessible_topology=pb.Topology(segments={names.TOPOLOGY: self._node})
        )

    async def node_stage_volume(self, request: pb.NodeStageVolumeRequest) -> pb.NodeStageVolumeResponse:
        """Mount a file system, once for all its pods."""
        asked.required(request.volume_id, "volume_id")
        asked.required(request.staging_target_path, "staging_target_path")
        way = self._way(request)
        await self._publisher.stage(request.volume_id, request.staging_target_path, way.options)
        return pb.NodeStageVolumeResponse()

    async def node_unstage_volume(self, request: pb.NodeUnstageVolumeRequest) -> pb.NodeUnstageVolumeResponse:
        """Unmount it."""
        asked.required(request.volume_id, "volume_id")
        asked.required(request.staging_target_path, "staging_target_path")
        await self._publisher.unstage(request.volume_id, request.staging_target_path)
        return pb.NodeUnstageVolumeResponse()

    async def node_publish_volume(self, request: pb.NodePublishVolumeRequest) -> pb.NodePublishVolumeResponse:
        """Show a volume to one pod."""
        asked.required(request.volume_id, "volume_id")
        asked.required(request.target_path, "target_path")
        way = self._way(request)
        await self._publisher.publish(
            request.volume_id,
            request.target_path,
            staged=request.staging_target_path,
            read_only=request.readonly or way.read_only or "ro" in way.options,
            alone=way.alone,
        )
        return pb.NodePublishVolumeResponse()

    async def node_unpublish_volume(
        self, request: pb.NodeUnpublishVolumeRequest
    ) -> pb.NodeUnpublishVolumeResponse:
        """Take it from that pod."""
        asked.required(request.volume_id, "volume_id")
        asked.required(request.target_path, "target_path")
        await self._publisher.unpublish(request.volume_id, request.target_path)
        return pb.NodeUnpublishVolumeResponse()

    async def node_get_volume_stats(
        self, request: pb.NodeGetVolumeStatsRequest
    ) -> pb.NodeGetVolumeStatsResponse:
        """How full it is."""
        asked.required(request.volume_id, "volume_id")
        asked.required(request.volume_path, "volume_path")
        use = await self._publisher.usage(request.volume_id, request.volume_path)
        answer = pb.NodeGetVolumeStatsResponse()
        answer.usage.add(
            unit=pb.VolumeUsage.BYTES, total=use.total, available=use.free, used=use.total - use.free
        )
        if use.inodes:
            used = use.inodes - use.inodes_free
            answer.usage.add(
                unit=pb.VolumeUsage.INODES, total=use.inodes, available=use.inodes_free, used=used
            )
        return answer

    async def node_expand_volume(self, request: pb.NodeExpandVolumeRequest) -> pb.NodeExpandVolumeResponse:
        """Make a volume larger, and have who uses it see that."""
        asked.required(request.volume_id, "volume_id")
        asked.required(request.volume_path, "volume_path")
        wanted = request.capacity_range
        least = asked.size(wanted) if wanted.required_bytes else 0
        volume = await self._publisher.expand(request.volume_id, request.volume_path, least)
        asked.check_grown(volume, wanted)
        return pb.NodeExpandVolumeResponse(capacity_bytes=volume.size)

    def _way(self, request: pb.NodeStageVolumeRequest | pb.NodePublishVolumeRequest) -> asked.Wish:
        """How the volume is to be used. Raises NotFound, and InvalidArgument for one of another kind."""
        if not request.HasField("volume_capability"):
            raise InvalidArgument("volume_capability is missing")
        way = asked.wish(request.volume_capability)
        volume = self._store.volume(request.volume_id)
        if way.content != volume.content:
            raise InvalidArgument(f"volume {volume.id} is a {volume.content}, and not a {way.content}")
        return way
