"""What the commands below ``orlop volume`` do."""

from __future__ import annotations

from collections.abc import Sequence

from orlop.cli import output
from orlop.cli.formats import Bytes, Printer, Row, Shape
from orlop.client import volumes
from orlop.client.texts import parse_size
from orlop.csi.api import csi_v1_pb2 as pb

SHAPE = Shape(headings={"Name": "VOLUME", "Size": "SIZE", "Kind": "KIND"}, columns=("Name", "Size", "Kind"))
SNAPSHOTS = Shape(
    headings={"Name": "SNAPSHOT", "Volume": "VOLUME", "Size": "SIZE"}, columns=("Name", "Volume", "Size")
)


async def create_command(socket: str, name: str, size: str, *, vm: bool, source: str) -> None:
    """``orlop volume create``."""
    async with volumes.connect(socket) as client:
        if source:
            begun = await volumes.find(client, source)
            origin = pb.VolumeContentSource()
            origin.volume.volume_id = begun.volume_id
            await volumes.create(client, name, begun.capacity_bytes, origin=origin)
        else:
            await volumes.create(client, name, parse_size(size), vm=vm)
    print(name)


async def list_command(socket: str, printer: Printer, *, snapshots: bool, quiet: bool, as_json: bool) -> None:
    """``orlop volume ls``."""
    rows: list[Row]
    async with volumes.connect(socket) as client:
        if snapshots:
            answer = await client.controller.list_snapshots(pb.ListSnapshotsRequest())
            kept: list[pb.Snapshot] = [one.snapshot for one in answer.entries]
            rows = [
                {"Name": one.snapshot_id, "Volume": one.source_volume_id, "Size": Bytes(one.size_bytes)}
                for one in kept
            ]
        else:
            answer = await client.controller.list_volumes(pb.ListVolumesRequest())
            found: list[pb.Volume] = [one.volume for one in answer.entries]
            rows = [
                {"Name": one.volume_id, "Size": Bytes(one.capacity_bytes), "Kind": volumes.kind_of(one)}
                for one in found
            ]
    if as_json:
        output.print_message(answer)
    elif quiet:
        for row in rows:
            print(row["Name"])
    else:
        printer.show(rows)


async def remove_command(socket: str, names: Sequence[str], *, snapshot: bool) -> None:
    """``orlop volume rm``."""
    async with volumes.connect(socket) as client:
        for name in names:
            if snapshot:
                await client.controller.delete_snapshot(pb.DeleteSnapshotRequest(snapshot_id=name))
            else:
                await volumes.remove(client, name)
            print(name)


async def inspect_command(socket: str, name: str) -> None:
    """``orlop volume inspect``."""
    async with volumes.connect(socket) as client:
        found = await volumes.find(client, name)
        wanted = pb.ListSnapshotsRequest(source_volume_id=found.volume_id)
        kept = await client.controller.list_snapshots(wanted)
    shown = output.message_to_dict(found)
    shown["snapshots"] = [output.message_to_dict(one.snapshot) for one in kept.entries]
    output.print_json(shown)


async def grow_command(socket: str, name: str, size: str) -> None:
    """``orlop volume grow``."""
    async with volumes.connect(socket) as client:
        await volumes.grow(client, name, parse_size(size))
    print(name)


async def snapshot_command(socket: str, volume: str, name: str) -> None:
    """``orlop volume snapshot``."""
    async with volumes.connect(socket) as client:
        await client.controller.create_snapshot(pb.CreateSnapshotRequest(source_volume_id=volume, name=name))
    print(name)


async def restore_command(socket: str, snapshot: str, volume: str) -> None:
    """``orlop volume restore``."""
    async with volumes.connect(socket) as client:
        await volumes.restore(client, snapshot, volume)
    print(volume)
