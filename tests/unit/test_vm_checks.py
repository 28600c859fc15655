"""What a VM refuses to be, and how big it is."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest

from orlop.config import VmConfig
from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.hypervisor.base import MachineShape
from orlop.sandbox.spec import (
    ContainerSpec,
    Device,
    Mount,
    NamespaceMode,
    Namespaces,
    PodSpec,
    Propagation,
    Resources,
    Root,
    Security,
)
from orlop.sandbox.vm.checks import check_container, check_pod, check_shared, check_volumes
from orlop.sandbox.vm.sizing import processors, shape_of, shortage, size, with_containers
from orlop.wire.hello import BLOCKS

MIB = 1 << 20
CONFIG = VmConfig()


def pod(
    *,
    namespaces: Namespaces | None = None,
    apparmor: str = "",
    resources: Resources | None = None,
    overhead: Resources | None = None,
) -> PodSpec:
    return PodSpec(
        id="p1",
        name="web",
        namespace="default",
        uid="u",
        namespaces=namespaces or Namespaces(),
        apparmor=apparmor,
        resources=resources or Resources(),
        overhead=overhead or Resources(),
    )


def test_special_files_of_the_host_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        special = (("/dev/null", "character device"), ("fifo", "FIFO"), ("socket", "socket"))
        for path, kind in special:
            mount = Mount(container_path="/v", host_path=str(tmp_path / path))
            with pytest.raises(FailedPrecondition, match=f"the host's {kind} .*handler 'process'"):
                check_volumes(ContainerSpec(id="c", pod_id="p", name="m", mounts=(mount,)), ())
    for path in ("file", "absent", "."):
        mount = Mount(container_path="/v", host_path=str(tmp_path / path))
        check_volumes(ContainerSpec(id="c", pod_id="p", name="m", mounts=(mount,)), ())


def test_block_devices_are_for_guests_that_know_them(tmp_path: Path) -> None:
    def asks(path: str, *features: str) -> None:
        devices = (Device(host_path=path, container_path="/dev/x"),)
        check_volumes(container(devices=devices), features)

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for path in ("/dev/kmsg", str(tmp_path / "fifo"), str(tmp_path)):
        with pytest.raises(FailedPrecondition, match=f"the host's device {path}, which is not in the VM"):
            asks(path, BLOCKS)
    with pytest.raises(InvalidArgument, match="which is a regular file"):
        asks(str(tmp_path / "file"), BLOCKS)
    with pytest.raises(NotFound, match="/dev/not-there, but on the host: No such file"):
        asks("/dev/not-there", BLOCKS)
    asks("/dev/fuse")
    block = next((str(path) for path in Path("/dev").iterdir() if path.is_block_device()), "")
    if block:
        asks(block, BLOCKS)
        with pytest.raises(FailedPrecondition, match="make the pod anew"):
            asks(block)
        strange = Device(host_path=block, container_path="/dev/x", permissions="rwx")
        with pytest.raises(InvalidArgument, match=r"'rwx' of the device .* are not of rwm"):
            check_volumes(container(devices=(strange,)), (BLOCKS,))


@pytest.mark.parametrize(
    ("namespaces", "word"),
    [
        (Namespaces(network=NamespaceMode.NODE), "network"),
        (Namespaces(pid=NamespaceMode.NODE), "PID"),
        (Namespaces(ipc=NamespaceMode.NODE), "IPC"),
    ],
)
def test_host_namespaces_are_refused(namespaces: Namespaces, word: str) -> None:
    with pytest.raises(FailedPrecondition, match=f"default/web asks for the host's {word} namespace"):
        check_pod(pod(namespaces=namespaces), CONFIG)


def test_apparmor_profile_is_refused_but_the_default_is_not() -> None:
    check_pod(pod(apparmor="runtime/default"), CONFIG)
    with pytest.raises(FailedPrecondition, match="AppArmor"):
        check_pod(pod(apparmor="localhost/mine"), CONFIG)


def container(**changes: object) -> ContainerSpec:
    base = ContainerSpec(id="c", pod_id="p1", name="c", root=Root(layers=("/l",)))
    return msgspec.structs.replace(base, **changes)


def test_what_a_container_mounts_cannot_appear_on_the_host() -> None:
    mounts = tuple(
        Mount(container_path=f"/{propagation}", host_path="/m", propagation=propagation)
        for propagation in (Propagation.PRIVATE, Propagation.HOST_TO_CONTAINER, Propagation.BIDIRECTIONAL)
    )
    spec = container(mounts=mounts)
    check_shared(spec, mounts[:2])
    with pytest.raises(FailedPrecondition, match="Bidirectional"):
        check_shared(spec, mounts)


def test_container_refusals() -> None:
    check_container(
        container(
            devices=(Device(host_path="/dev/fuse", container_path="/dev/fuse"),),
        ),
        (),
    )
    with pytest.raises(InvalidArgument, match="target container 'other'"):
        check_container(
            container(
                namespaces=Namespaces(pid=NamespaceMode.TARGET, target_container="other"),
            ),
            ("one",),
        )
    with pytest.raises(FailedPrecondition, match="AppArmor"):
        check_container(container(security=Security(apparmor="localhost/x")), ())


def test_shape_without_limits_is_the_default() -> None:
    assert shape_of(pod(), CONFIG) == MachineShape(memory_mib=512, vcpus=1)


def test_shape_follows_limits() -> None:
    limits = Resources(memory_limit=300 * MIB + 1, cpu_quota=150_000, cpu_period=100_000)
    assert shape_of(pod(resources=limits), CONFIG) == MachineShape(memory_mib=430, vcpus=2)
    assert shape_of(
        pod(resources=limits, overhead=Resources(memory_limit=200 * MIB)), CONFIG
    ) == MachineShape(memory_mib=502, vcpus=2)


def test_shape_is_bounded() -> None:
    many = Resources(cpu_quota=9_900_000)
    assert size(Resources(), many, CONFIG, who="pod").vcpus == CONFIG.max_vcpus
    with pytest.raises(InvalidArgument, match="max_memory_mib is 16384"):
        check_pod(pod(resources=Resources(memory_limit=17 << 30)), CONFIG)


def test_a_pod_is_told_of_processors_that_its_vm_does_not_have() -> None:
    def said(milli: int, vcpus: int, accelerator: str) -> str:
        return shortage(Resources(cpu_quota=milli * 100), vcpus, accelerator, CONFIG)

    assert [processors(Resources(cpu_quota=quota)) for quota in (0, 1, 100_000, 100_001)] == [0, 1, 1, 2]
    assert said(0, 1, "tcg") == said(1000, 1, "tcg") == said(2000, 2, "kvm") == ""
    assert "worth 2 processors, and its VM has 1: a VM under emulation" in said(1500, 1, "tcg")
    assert said(9000, 8, "kvm").endswith("has 8: vm.max_vcpus is 8")


def test_memory_grows_with_containers_of_which_the_pod_says_nothing() -> None:
    def mib(pod_limit: int, *limits: int) -> int:
        pod = Resources(memory_limit=pod_limit * MIB)
        return with_containers(Resources(), pod, [one * MIB for one in limits], CONFIG, who="pod")

    # One container without a limit has what the default leaves; each more has as much again.
    assert (mib(0, 0), mib(0, 0, 0), mib(0, 0, 0, 0)) == (512, 896, 1280)
    assert mib(200, 200) == 328 and mib(200, 200, 0) == 328 + 384
    # A client that says nothing of the pod as a whole.
    assert mib(0, 200, 100) == 428 and mib(0) == 128
    # A large VM's own page descriptors are on top.
    assert mib(6400, 6400) == 128 + 6400 + 94
    assert mib(16256, 16256) == mib(16200, 16200) == CONFIG.max_memory_mib
    # More than is allowed is refused where it was asked for by number, and bounded where it was not.
    assert mib(16000, 16000, 0, 0) == CONFIG.max_memory_mib
    with pytest.raises(InvalidArgument, match="limits need a VM of"):
        mib(0, 9000, 9000)


def test_huge_pages_are_refused_and_a_limit_of_none_is_not() -> None:
    def asking(limit: int) -> ContainerSpec:
        limits = Resources(hugepage_limits=(("2Mi", limit),))
        return container(args=("x",), resources=limits)

    check_container(asking(0), ())
    with pytest.raises(FailedPrecondition, match="huge pages"):
        check_container(asking(1 << 21), ())
