"""What is said to an agent of version 0.1, and what it says. ``make upgrade`` asks a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orlop.errors import FailedPrecondition
from orlop.sandbox.vm import former
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.files import PodFiles
from orlop.wire.hello import Hello
from orlop.wire.messages import (
    Create,
    Created,
    Request,
    Stats,
    pack_request,
    unpack_reply,
)
from orlop.wire.values import Container, Disks, GuestMount, PluggedDisk
from tests.unit.vm_peer import Peer

CONTAINER = Container(
    id="c1",
    args=("sh",),
    disks=Disks(
        root=(PluggedDisk(id="a", at=("scsi-kept:1",)), PluggedDisk(id="b", at=("scsi:20/1", "scsi:20/2"))),
        scratch=PluggedDisk(id="rw", at=("scsi-kept:13",)),
        volumes=(PluggedDisk(id="v", at=("scsi:21/1",)),),
    ),
    mounts=(GuestMount(target="/v", kind="image", volume="v"),),
)


def said(request: Request[Any]) -> Any:
    return json.loads(former.to_agent(pack_request(request)))["args"]


def test_a_container_has_its_disks_by_unit() -> None:
    found = said(Create(container=CONTAINER))["container"]
    assert found["lower"] == [
        {"lun": 1, "partitions": 0, "lasting": True},
        {"lun": 20, "partitions": 2, "lasting": False},
    ]
    assert found["scratch"] == {"disk": {"lun": 13, "partitions": 0, "lasting": True}}
    assert found["mounts"][0]["disk"] == {"lun": 21, "partitions": 1, "lasting": False}
    assert "disks" not in found and "volume" not in found["mounts"][0]


def test_what_that_agent_cannot_do_is_refused() -> None:
    container = Container(id="c1", args=("sh",), disks=Disks(), root="c1-root")
    with pytest.raises(FailedPrecondition, match="start the pod again"):
        former.to_agent(pack_request(Create(container=container)))


def test_replies_become_those_of_today() -> None:
    create = Create(container=CONTAINER)
    reply = former.from_agent("create", b'{"ok": {"pid": 4, "gid": 7}}')
    assert unpack_reply(create, reply) == Created(uid=0, gid=7, groups=())
    usage = {"timestamp": 5, "cpu_ns": 9, "read_bytes": 11, "writes": 2}
    old = {"pod": usage, "containers": [{"id": "c1", "usage": usage, "fs_used": 3}]}
    stats = unpack_reply(Stats(), former.from_agent("stats", json.dumps({"ok": old}).encode()))
    assert (stats.pod.read_bytes, stats.containers[0].usage.writes, stats.containers[0].layer.used) == (
        11,
        2,
        3,
    )
    assert former.from_agent("create", b'{"error": {"code": "exists"}}') == b'{"error":{"code":"exists"}}'


@pytest.mark.parametrize("reply", [{"containers": 5}, {"pod": []}, {"containers": [1, {"usage": "x"}]}])
def test_a_malformed_reply_is_left_to_the_check(reply: Any) -> None:
    assert json.loads(former.from_agent("stats", json.dumps({"ok": reply}).encode()))["ok"]


def test_the_files_of_0_1_are_read(tmp_path: Path) -> None:
    disks = [
        {"id": "img-1", "lun": 3, "path": "", "layers": 1, "lasting": True},
        {"id": "img-2", "lun": 30, "path": "", "layers": 2, "partitions": 2},
        {"id": "img-3", "lun": -1, "path": "", "layers": 1},
        {"id": "rw-1", "lun": 14, "path": "/x", "lasting": True},
    ]
    files = PodFiles(tmp_path, "p1")
    files.directory.mkdir(parents=True)
    (files.directory / "c1.json").write_text(json.dumps({"id": "c1", "disks": disks, "scratch": "/x"}))
    (found,) = files.containers()
    assert found.disks == Disks(
        root=(
            PluggedDisk(id="img-1", at=("scsi-kept:3",)),
            PluggedDisk(id="img-2", at=("scsi:30/1", "scsi:30/2")),
            PluggedDisk(id="img-3"),
        ),
        scratch=PluggedDisk(id="rw-1", at=("scsi-kept:14",)),
    )
    files.write_container(found)
    assert files.containers() == [found]
    for damaged in ([5], [{"id": "x"}], [{"id": "x", "lun": 1, "partitions": 1 << 40}]):
        with pytest.raises(msgspec.ValidationError):
            former.disks(damaged)


async def test_a_daemon_that_greets_names_no_version_and_takes_the_first(tmp_path: Path) -> None:
    async with Peer(tmp_path / "s", lambda request: Created(uid=1, gid=2, groups=())) as peer:
        peer.hello = Hello(next_stream=3)  # an agent of version 1 did not say it
        client = await AgentClient.connect(tmp_path / "s", name="VM x", timeout=60)
        try:
            assert client.hello.version == former.VERSION
        finally:
            await client.close()
