"""What a container asked for becomes what the agent is told."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from orlop.sandbox.spec import (
    ContainerSpec,
    Device,
    Dns,
    IdMapping,
    ImageVolume,
    Mount,
    NamespaceMode,
    Namespaces,
    PodSpec,
    Propagation,
    Resources,
    Root,
    Security,
    Tmpfs,
)
from orlop.sandbox.vm import translate
from orlop.sandbox.vm.translate import Plugged
from orlop.wire import values as wire
from orlop.wire.messages import Create, pack_request, unpack_request

DISKS = wire.Disks(
    root=(wire.PluggedDisk(id="img", at=("scsi:3/1", "scsi:3/2")),),
    scratch=wire.PluggedDisk(id="rw", at=("scsi:4",)),
)


def spec(**changes: object) -> ContainerSpec:
    values: dict[str, object] = {
        "id": "c1",
        "pod_id": "p1",
        "name": "main",
        "root": Root(layers=("/a", "/b")),
        "args": ("/bin/sh", "-c", "true"),
        "env": (("A", b"\xff"),),
    }
    return ContainerSpec(**(values | changes))  # type: ignore[arg-type]


def translated(container: ContainerSpec, plugged: Plugged | None = None) -> wire.Container:
    message = translate.container(
        container,
        plugged or Plugged(disks=DISKS),
        streams=wire.Streams(stdout=1, stderr=2),
        seccomp=b"12345678",
        seccomp_flags=1,
    )
    again = unpack_request(pack_request(Create(container=message)))
    assert again == Create(container=message)
    return message


def test_a_plain_container() -> None:
    container = translated(spec())
    assert container.disks == DISKS
    assert container.env == (("A", b"\xff"),)
    assert container.security.seccomp == b"12345678"
    assert container.namespaces.pid == "container"


def test_volumes() -> None:
    image = ImageVolume(image_id="i", layers=("/v",), sub_path="/sub/dir/")
    mounts = (
        Mount(container_path="/data", host_path="/srv", propagation=Propagation.HOST_TO_CONTAINER),
        Mount(container_path="/ro", host_path="/srv", read_only=True, recursive_read_only=True),
        Mount(container_path="/img", image=image, options=("noexec",)),
        Mount(container_path="/tmp", tmpfs=Tmpfs(), options=("noexec", "nosuid")),
        Mount(container_path="/empty", host_path="/pods", propagation=Propagation.BIDIRECTIONAL),
    )
    volume_disk = wire.PluggedDisk(id="volume", at=("scsi-kept:9",))
    plugged = Plugged(
        disks=dataclasses.replace(DISKS, volumes=(volume_disk,)),
        shares={"/data": "c1-0", "/ro": "c1-1"},
        volumes={"/img": "volume"},
        held={"/empty": ("v1", "below")},
    )
    data, read_only, volume, memory, empty = translated(spec(mounts=mounts), plugged).mounts
    assert (data.kind, data.source, data.propagation) == ("share", "c1-0", "rslave")
    assert read_only.recursive_read_only
    assert (volume.kind, volume.source, volume.read_only) == ("image", "sub/dir", True)
    assert volume.volume == volume_disk.id
    assert (data.options, volume.options) == ((), ("noexec",))
    assert memory.options == ("nodev", "noexec", "nosuid")
    assert (empty.kind, empty.volume, empty.source, empty.propagation) == ("volume", "v1", "below", "rshared")


def test_security_and_namespaces() -> None:
    container = translated(
        spec(
            security=Security(
                user="web", group="7", capabilities=("CHOWN",), ambient=("CHOWN",), no_new_privs=True
            ),
            namespaces=Namespaces(
                pid=NamespaceMode.TARGET,
                target_container="c0",
                uid_mappings=(IdMapping(container_id=0, host_id=65536, length=65536),),
            ),
            devices=(Device(host_path="/dev/fuse", container_path="/dev/f"),),
            resources=Resources(oom_score_adj=1000),
        )
    )
    assert container.security.bounding == container.security.effective == ("CHOWN",)
    assert container.security.oom_score_adj == 1000
    assert (container.namespaces.pid, container.namespaces.target) == ("target", "c0")
    assert container.namespaces.uid_mappings[0].outer == 65536
    assert container.devices[0] == wire.GuestDevice(path="/dev/f", source="/dev/fuse")


def test_resources() -> None:
    limits = translate.resources(
        Resources(
            cpu_shares=1024, cpu_quota=-1, cpu_period=100000, memory_limit=100, swap_limit=150, pids_limit=9
        )
    )
    assert limits.cpu_weight == 39
    assert limits.cpu_quota_us == -1
    assert (limits.memory_max, limits.memory_swap_max) == (100, 50)
    assert limits.pids_max == 9
    assert translate.resources(Resources()) == wire.NO_LIMITS


@given(st.integers(-5, 1 << 62))
def test_cpu_weight_is_in_range(shares: int) -> None:
    assert 0 <= translate.cpu_weight(shares) <= 10000


def test_files_of_the_pod() -> None:
    assert translate.resolv_conf(Dns(), "nameserver 1.2.3.4\n") == "nameserver 1.2.3.4\n"
    text = translate.resolv_conf(
        Dns(servers=("10.0.0.10",), searches=("a.b", "b"), options=("ndots:5",)), "unused"
    )
    assert text == "search a.b b\nnameserver 10.0.0.10\noptions ndots:5\n"
    assert "10.1.0.2\tweb\n" in translate.hosts("web", ("10.1.0.2",))


def test_host_names() -> None:
    def named(name: str, hostname: str = "") -> str:
        return translate.hostname_of(PodSpec(id="p", name=name, namespace="n", uid="u", hostname=hostname))

    assert named("web") == "web"
    assert named("web", "host-1") == "host-1"
    # A full name in a cluster without a domain.
    assert named("web", "web.db.shop.svc.") == "web.db.shop.svc."
    assert len(named("x" * 100)) == 64
    assert named("---") == "pod"
