"""The sanity suite of kubernetes-csi against ``orlop csi``, whole; and what a driver that is killed leaves.

The driver has a mount namespace of its own, so that nothing else on the machine holds its mounts.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any
from xml.etree import ElementTree

import pytest
from grpc import aio

from orlop.client.calls import Service, VolumeClient
from orlop.csi.api import csi_v1_pb2 as pb
from orlop.csi.api import registration_pb2
from orlop.errors import NotFound, ResourceExhausted
from orlop.linux import loop
from tests.conformance import tools
from tests.e2e.test_volumes_host import may_resize
from tests.patience import PATIENCE

GIB = 1 << 30
RUN = 64
"""Specs of the suite that are about what the driver does; others skip themselves."""
GROWING = "should work if node-expand is called after node-publish"
"""The spec that wants the host to grow an ext4 while it is mounted, which not every root may do."""


class Driver:
    """``orlop csi`` with everything below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "csi.sock"
        self.registry = root / "registry"
        (root / "config.toml").write_text(
            f'root = "{root}/root"\nstate = "{root}/state"\n[csi]\nenabled = true\nnode = "here"\n'
            f'socket = "{self.socket}"\nregistry = "{self.registry}"\n'
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.space: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.space is None:
            self.space = subprocess.Popen(["unshare", "--mount", "--propagation", "slave", "cat"], stdin=PIPE)
        command = ["nsenter", f"--mount=/proc/{self.space.pid}/ns/mnt", "--wd=.", sys.executable]
        command += ["-m", "orlop.cli.main", "csi", "--config", str(self.root / "config.toml")]
        until = time.monotonic() + 60 * PATIENCE
        # What becomes cat has made the namespace before, and has cut it off from this one.
        while Path(f"/proc/{self.space.pid}/comm").read_text() != "cat\n":
            assert time.monotonic() < until
            time.sleep(0.01)
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while not self._answers():
            assert self.process.poll() is None, (self.root / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)

    def _answers(self) -> bool:
        """The last socket that it serves is the one for the kubelet."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(f"{self.registry}/csi.orlop.io-reg.sock")
            except OSError:
                return False
        return True

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30 * PATIENCE)

    def close(self) -> None:
        """End it, and all that is mounted with it."""
        self.end()
        if self.space is not None:
            self.space.communicate()

    def devices(self) -> list[str]:
        """Loop devices that any volume has."""
        disks = (self.root / "root/volumes").glob("*/*/data/.orlop-volume")
        return [device for disk in disks for device in loop.devices_of(str(disk))]

    def wait_free(self) -> None:
        """Wait until no volume has one: what has just ended may have had a mount to the last."""
        until = time.monotonic() + 30 * PATIENCE
        while left := self.devices():
            assert time.monotonic() < until, left
            time.sleep(0.1)


@contextmanager
def driver(root: Path) -> Iterator[Driver]:
    one = Driver(root)
    one.start()
    try:
        yield one
    finally:
        one.close()


@asynccontextmanager
async def driving(root: Path) -> AsyncIterator[VolumeClient]:
    """A client of a driver of its own."""
    with driver(root) as one:
        async with VolumeClient(one.socket) as client:
            yield client


@pytest.mark.parametrize(
    ("content", "mounted_by"), [("mount", "host"), ("mount", "guest"), ("block", "host")]
)
def test_the_sanity_suite(content: str, mounted_by: str, tmp_path: Path) -> None:
    suite = tools.csi_sanity()
    report = tmp_path / "report.xml"
    (tmp_path / "parameters.yaml").write_text(f"mountedBy: {mounted_by}\n")
    cannot = (content, mounted_by) == ("mount", "host") and not may_resize()
    with driver(tmp_path) as one:
        done = subprocess.run(
            [
                suite,
                f"-csi.endpoint=unix://{one.socket}",
                f"-csi.mountdir={tmp_path}/mount",
                f"-csi.stagingdir={tmp_path}/staging",
                f"-csi.testvolumesize={GIB}",
                f"-csi.testvolumeexpandsize={2 * GIB}",
                f"-csi.testvolumeaccesstype={content}",
                f"-csi.testvolumeparameters={tmp_path}/parameters.yaml",
                *([f"-ginkgo.skip={GROWING}"] if cannot else []),
                f"-ginkgo.junit-report={report}",
                "-ginkgo.no-color",
            ],
            capture_output=True,
            text=True,
            timeout=300 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        log = (tmp_path / "log").read_text()
        assert "unexpected" not in log and "Traceback" not in log, log[-4000:]
        one.wait_free()
    cases = list(ElementTree.parse(report).iter("testcase"))
    assert sum(case.get("status") == "passed" for case in cases) >= RUN - cannot
    # What is left out is what the driver says that it does not do.
    for case in cases:
        name = str(case.get("name"))
        if "pagination should" in name or (cannot and GROWING in name):
            continue
        if (said := case.find("skipped")) is not None:
            assert re.search(r"not supported|not enabled", str(said.get("message"))), name


async def test_a_kubelet_is_told_who_it_is(tmp_path: Path) -> None:
    with driver(tmp_path) as one:
        async with aio.insecure_channel(f"unix:{one.registry}/csi.orlop.io-reg.sock") as channel:
            service = registration_pb2.DESCRIPTOR.services_by_name["Registration"]
            kubelet = Service(channel, service, "the registry")
            found = await kubelet.get_info(registration_pb2.InfoRequest())
            told = registration_pb2.RegistrationStatus(plugin_registered=False, error="it is too old")
            await kubelet.notify_registration_status(told)
        assert (found.type, found.name) == ("CSIPlugin", "csi.orlop.io")
        assert found.endpoint == str(one.socket) and found.supported_versions == ["1.0.0"]
        for socket_file in (one.socket, *one.registry.iterdir()):
            assert socket_file.stat().st_mode & 0o777 == 0o600
        assert "it is too old" in (tmp_path / "log").read_text()


async def test_no_volume_is_promised_that_has_no_room(tmp_path: Path) -> None:
    """A scheduler goes by the largest volume that there can be, and not by what is free."""
    asked = pb.GetCapacityRequest()
    async with driving(tmp_path) as client:
        here = await client.controller.get_capacity(asked)
        assert 0 < here.maximum_volume_size.value == here.available_capacity
        asked.accessible_topology.segments["topology.csi.orlop.io/node"] = "elsewhere"
        there = await client.controller.get_capacity(asked)
        assert there.maximum_volume_size.value == there.available_capacity == 0


async def test_a_copy_of_what_is_on_another_node_is_made_there(tmp_path: Path) -> None:
    """Who has seen the source hears that this is the wrong node; others hear that there is none."""
    way = pb.VolumeCapability(
        block=pb.VolumeCapability.BlockVolume(),
        access_mode=pb.VolumeCapability.AccessMode(mode=pb.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
    )
    wanted = pb.CreateVolumeRequest(name="copy", volume_capabilities=[way])
    wanted.volume_content_source.snapshot.snapshot_id = "elsewhere"
    async with driving(tmp_path) as client:
        with pytest.raises(NotFound, match="no snapshot 'elsewhere'"):
            await client.controller.create_volume(wanted)
        wanted.parameters["csi.storage.k8s.io/pvc/name"] = "copy"
        with pytest.raises(ResourceExhausted, match="a copy is made on the node of its source"):
            await client.controller.create_volume(wanted)
        assert not (await client.controller.list_volumes(pb.ListVolumesRequest())).entries


async def test_a_driver_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """Pods keep their volumes, and the next driver takes them away."""
    one = Driver(tmp_path)
    one.start()
    capability = pb.VolumeCapability(
        mount=pb.VolumeCapability.MountVolume(),
        access_mode=pb.VolumeCapability.AccessMode(mode=pb.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
    )
    block = pb.VolumeCapability(block=pb.VolumeCapability.BlockVolume(), access_mode=capability.access_mode)
    try:
        for number in (signal.SIGKILL, signal.SIGTERM):
            async with VolumeClient(one.socket) as client:
                for way, name in ((capability, "data"), (block, "raw")):
                    wanted = pb.CreateVolumeRequest(name=name, volume_capabilities=[way])
                    wanted.capacity_range.required_bytes = GIB
                    made = await client.controller.create_volume(wanted)
                    assert made.volume.volume_id == name
                    where: dict[str, Any] = {"volume_id": name, "volume_capability": way}
                    staging: dict[str, Any] = {"staging_target_path": f"{tmp_path}/staging-{name}"}
                    await client.node.node_stage_volume(pb.NodeStageVolumeRequest(**where, **staging))
                    target = f"{tmp_path}/target-{name}"
                    await client.node.node_publish_volume(
                        pb.NodePublishVolumeRequest(**where, **staging, target_path=target)
                    )
            assert len(one.devices()) == 2
            one.end(number)
            assert len(one.devices()) == 2, "what pods have stays"
            one.start()
        async with VolumeClient(one.socket) as client:
            for name in ("data", "raw"):
                await client.node.node_unpublish_volume(
                    pb.NodeUnpublishVolumeRequest(volume_id=name, target_path=f"{tmp_path}/target-{name}")
                )
                await client.node.node_unstage_volume(
                    pb.NodeUnstageVolumeRequest(
                        volume_id=name, staging_target_path=f"{tmp_path}/staging-{name}"
                    )
                )
                await client.controller.delete_volume(pb.DeleteVolumeRequest(volume_id=name))
            assert not (await client.controller.list_volumes(pb.ListVolumesRequest())).entries
        one.wait_free()
    finally:
        one.close()
