"""Requests become values, or an InvalidArgument that names the field; nothing else ever happens."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.cri import validate
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.translate import common, container, image, pod, signals, status
from orlop.cri.translate.entries import Entries, framed, paged
from orlop.errors import InvalidArgument, OrlopError
from orlop.images.model import Image, ImageConfigOci
from orlop.pods.records import ContainerPhase, ContainerRecord
from orlop.pods.resolve import signal_name, signal_number
from orlop.sandbox.spec import (
    ContainerSpec,
    ImageVolume,
    Mount,
    NamespaceMode,
    PortMapping,
    Propagation,
    Seccomp,
    SeccompMode,
)
from tests.unit.cri_double import TEXT, messages


def answer(call: Any, *args: Any) -> Any:
    """What ``call`` makes of it, or None when it refuses, in one short sentence."""
    try:
        return call(*args)
    except OrlopError as error:
        assert isinstance(error, InvalidArgument)
        assert len(str(error)) < 500 and "\n" not in str(error)
        return None


@settings(max_examples=150)
@given(messages(pb.PodSandboxConfig.DESCRIPTOR), TEXT)
def test_any_pod_config_is_taken_or_refused(config: pb.PodSandboxConfig, handler: str) -> None:
    spec = answer(pod.pod_spec, config, handler)
    if spec is not None:
        assert 0 < len(spec.name) <= 256 and not re.search(r"[\x00-\x1f/;]", spec.name)
        assert all(0 < item.host_port < 65536 for item in spec.port_mappings)


@settings(max_examples=150)
@given(TEXT, messages(pb.ContainerConfig.DESCRIPTOR))
def test_any_container_config_is_taken_or_refused(pod_id: str, config: pb.ContainerConfig) -> None:
    request = answer(container.container_request, pod_id, config)
    if request is not None:
        assert request.image and request.name
        assert all("\0" not in item for item in (*request.command, *request.args))


@settings(max_examples=100)
@given(
    st.one_of(
        messages(pb.ContainerFilter.DESCRIPTOR),
        messages(pb.PodSandboxFilter.DESCRIPTOR),
        messages(pb.ContainerStatsFilter.DESCRIPTOR),
        messages(pb.PodSandboxStatsFilter.DESCRIPTOR),
    )
)
def test_any_filter_is_taken_or_refused(wanted: Message) -> None:
    call: dict[type, Any] = {
        pb.ContainerFilter: container.container_filter,
        pb.PodSandboxFilter: pod.pod_filter,
        pb.ContainerStatsFilter: container.stats_filter,
        pb.PodSandboxStatsFilter: pod.stats_filter,
    }
    answer(call[type(wanted)], wanted)


@given(messages(pb.LinuxContainerResources.DESCRIPTOR))
def test_resources_come_back_as_they_went(value: pb.LinuxContainerResources) -> None:
    taken = answer(common.resources, value, "linux")
    if taken is not None:
        again = status.linux_resources(taken)
        again.cpuset_cpus, again.cpuset_mems = value.cpuset_cpus, value.cpuset_mems
        assert again == value


def pod_config(**fields: Any) -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="p", namespace="n", uid="u"), **fields)


def container_config(**fields: Any) -> pb.ContainerConfig:
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="c"), image=pb.ImageSpec(image="busybox"), **fields
    )


def linux(**fields: Any) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**fields))


BAD_PODS: list[tuple[str, dict[str, Any]]] = [
    ("config.hostname", {"hostname": "-bad"}),
    ("config.hostname", {"hostname": "x" * 65}),
    ("config.log_directory", {"log_directory": "logs"}),
    ("config.dns_config.servers", {"dns_config": pb.DNSConfig(servers=["1.1.1.1\nsearch evil"])}),
    ("config.port_mappings[0].protocol", {"port_mappings": [pb.PortMapping(protocol=9)]}),  # type: ignore[arg-type]
    ("config.port_mappings[0].container_port", {"port_mappings": [pb.PortMapping(host_port=80)]}),
    ("config.port_mappings[0].host_ip", {"port_mappings": [pb.PortMapping(host_ip="nowhere")]}),
    ("config.linux.cgroup_parent", {"linux": pb.LinuxPodSandboxConfig(cgroup_parent="/a/../b")}),
    ("config.linux.sysctls", {"linux": pb.LinuxPodSandboxConfig(sysctls={"../x": "1"})}),
    ("windows", {"windows": pb.WindowsPodSandboxConfig()}),
    ("config.labels", {"labels": {"": "x"}}),
    ("config.annotations", {"annotations": {"big": "x" * (1 << 20)}}),
]


@pytest.mark.parametrize(("field", "fields"), BAD_PODS)
def test_a_bad_pod_is_refused_by_field(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(field)):
        pod.pod_spec(pod_config(**fields), "")


@pytest.mark.parametrize("name", ["web-0", "web-0.db.shop.svc.", "x" * 64, ""])
def test_a_host_name_may_be_a_full_one(name: str) -> None:
    assert pod.pod_spec(pod_config(hostname=name), "").hostname == name


BAD_CONTAINERS: list[tuple[str, dict[str, Any]]] = [
    ("config.args[0]", {"args": ["a\0"]}),
    ("config.command[1]", {"command": ["sh", "x" * (1 << 17)]}),
    ("config.args is", {"args": ["x" * 100_000] * 11}),
    ("config.envs[0].key", {"envs": [pb.KeyValue(key="A=B")]}),
    ("config.envs[0].value", {"envs": [pb.KeyValue(key="A", value=b"\0")]}),
    ("config.mounts[0].host_path", {"mounts": [pb.Mount(container_path="/a")]}),
    ("config.mounts[0].propagation", {"mounts": [pb.Mount(propagation=7)]}),  # type: ignore[arg-type]
    ("readonly", {"mounts": [pb.Mount(container_path="/a", host_path="/b", recursive_read_only=True)]}),
    ("readonly", {"mounts": [pb.Mount(container_path="/a", image=pb.ImageSpec(image="i"))]}),
    (
        "PROPAGATION_PRIVATE",
        {
            "mounts": [
                pb.Mount(
                    container_path="/a",
                    host_path="/b",
                    readonly=True,
                    recursive_read_only=True,
                    propagation=pb.PROPAGATION_HOST_TO_CONTAINER,
                )
            ]
        },
    ),
    ("permissions", {"devices": [pb.Device(host_path="/dev/null", permissions="rwx")]}),
    ("config.stop_signal", {"stop_signal": 99}),
    ("run_as_group needs", {"linux": linux(run_as_group=pb.Int64Value(value=1))}),
    ("run_as_user", {"linux": linux(run_as_user=pb.Int64Value(value=-1))}),
    ("supplemental_groups_policy", {"linux": linux(supplemental_groups_policy=5)}),
    ("masked_paths", {"linux": linux(masked_paths=["proc"])}),
    ("namespace_options.target_id", {"linux": linux(namespace_options=pb.NamespaceOption(pid=pb.TARGET))}),
    ("namespace_options.network", {"linux": linux(namespace_options=pb.NamespaceOption(network=pb.TARGET))}),
    (
        "localhost_ref",
        {"linux": linux(seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost))},
    ),
    ("seccomp_profile_path", {"linux": linux(seccomp_profile_path="what")}),
    ("selinux_options.user", {"linux": linux(selinux_options=pb.SELinuxOption(user="a:b"))}),
]


@pytest.mark.parametrize(("field", "fields"), BAD_CONTAINERS)
def test_a_bad_container_is_refused_by_field(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(field)):
        container.container_request("p", container_config(**fields))


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InvalidArgument, match=r"config\.metadata is missing"):
        pod.pod_spec(pb.PodSandboxConfig(), "")
    with pytest.raises(InvalidArgument, match=r"config\.metadata\.name is empty"):
        pod.pod_spec(pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata()), "")
    with pytest.raises(InvalidArgument, match=r"config\.image\.image is empty"):
        container.container_request("p", pb.ContainerConfig(metadata=pb.ContainerMetadata(name="c")))


def test_a_pod_in_full() -> None:
    context = pb.LinuxSandboxSecurityContext(
        namespace_options=pb.NamespaceOption(
            network=pb.NODE,
            userns_options=pb.UserNamespace(
                mode=pb.POD,
                uids=[pb.IDMapping(host_id=100000, length=65536)],
                gids=[pb.IDMapping(host_id=100000, length=65536)],
            ),
        ),
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
        apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="mine"),
    )
    spec = pod.pod_spec(
        pod_config(
            hostname="web-0",
            port_mappings=[
                pb.PortMapping(container_port=80),
                pb.PortMapping(container_port=53, host_port=5353, protocol=pb.UDP, host_ip="::1"),
            ],
            linux=pb.LinuxPodSandboxConfig(
                security_context=context,
                sysctls={"net.ipv4.ip_forward": "1"},
                resources=pb.LinuxContainerResources(memory_limit_in_bytes=1 << 30),
            ),
        ),
        "process",
    )
    assert spec.port_mappings == (
        PortMapping(protocol="udp", container_port=53, host_port=5353, host_ip="::1"),
    )
    assert spec.namespaces.network is NamespaceMode.NODE
    assert spec.namespaces.pid is NamespaceMode.POD
    assert spec.namespaces.user is NamespaceMode.POD and spec.namespaces.uid_mappings[0].length == 65536
    assert spec.seccomp == Seccomp(mode=SeccompMode.RUNTIME_DEFAULT)
    assert (spec.apparmor, spec.handler, spec.resources.memory_limit) == (
        "localhost/mine",
        "process",
        1 << 30,
    )


@pytest.mark.parametrize(
    "mappings",
    [[], [(0, 1, 1), (1, 2, 1)], [(0, 1, 0)], [(1, 1, 1)], [(0, 2**32 - 1, 5)]],
)
def test_bad_user_namespaces(mappings: list[tuple[int, int, int]]) -> None:
    ids = [pb.IDMapping(container_id=a, host_id=b, length=c) for a, b, c in mappings]
    option = pb.NamespaceOption(userns_options=pb.UserNamespace(mode=pb.POD, uids=ids, gids=ids))
    with pytest.raises(InvalidArgument, match="userns_options"):
        common.namespaces(option, "options")


@pytest.mark.parametrize(
    ("legacy", "expected"),
    [
        ("", Seccomp()),
        ("unconfined", Seccomp()),
        ("runtime/default", Seccomp(mode=SeccompMode.RUNTIME_DEFAULT)),
        ("docker/default", Seccomp(mode=SeccompMode.RUNTIME_DEFAULT)),
        ("localhost//p.json", Seccomp(mode=SeccompMode.LOCALHOST, path="/p.json")),
    ],
)
def test_seccomp_of_older_callers(legacy: str, expected: Seccomp) -> None:
    assert common.seccomp(None, legacy, "context") == expected


@pytest.mark.parametrize(
    ("legacy", "expected"),
    [
        ("", ""),
        ("unconfined", "unconfined"),
        ("runtime/default", "runtime/default"),
        ("localhost/a", "localhost/a"),
    ],
)
def test_apparmor_of_older_callers(legacy: str, expected: str) -> None:
    assert common.apparmor(None, legacy, "context") == expected
    with pytest.raises(InvalidArgument):
        common.apparmor(None, "localhost", "context")


def test_every_stop_signal_survives_the_way_there_and_back() -> None:
    for name, number in pb.Signal.items():
        ours = signals.name_of(number, "stop_signal")
        if not ours:
            assert name == "SIGNAL_RUNTIME_DEFAULT"
            continue
        back = signals.number_of(signal_name(signal_number(ours)))
        assert signal_number(signals.name_of(back, "s")) == signal_number(ours), name


def test_mounts_are_shown_with_their_image() -> None:
    volume = ImageVolume(image_id="sha256:1", layers=(), sub_path="etc", reference="busybox", image_ref="b@1")
    record = ContainerRecord(
        spec=ContainerSpec(
            id="c",
            pod_id="p",
            name="n",
            mounts=(
                Mount(container_path="/i", image=volume, read_only=True),
                Mount(container_path="/h", host_path="/x", propagation=Propagation.BIDIRECTIONAL),
            ),
        ),
        phase=ContainerPhase.EXITED,
        created_at=1,
        exit_code=137,
        reason="OOMKilled",
    )
    shown = status.container_status(record)
    assert (shown.mounts[0].image.image_ref, shown.mounts[0].image_sub_path) == ("sha256:1", "etc")
    assert shown.mounts[1].propagation == pb.PROPAGATION_BIDIRECTIONAL
    assert (shown.exit_code, shown.reason, shown.state) == (137, "OOMKilled", pb.CONTAINER_EXITED)


@given(st.lists(st.binary(max_size=400), max_size=40))
def test_joined_entries_are_what_protobuf_would_write(payloads: list[bytes]) -> None:
    items = [pb.Container(id=data.hex()) for data in payloads]
    joined = b"".join(framed(item.SerializeToString()) for item in items)
    assert pb.ListContainersResponse.FromString(joined) == pb.ListContainersResponse(containers=items)


def test_pages_are_bounded_and_never_empty() -> None:
    assert list(paged([])) == []
    sizes = [len(page) for page in paged([b"x" * 300_000] * 10)]
    assert sizes == [1_200_000, 1_200_000, 600_000]


def test_entries_are_encoded_once() -> None:
    built = []

    def build(record: ContainerRecord) -> pb.Container:
        built.append(record)
        return pb.Container(id=record.id)

    entries: Entries[ContainerRecord] = Entries(build)
    records = [
        ContainerRecord(
            spec=ContainerSpec(id=str(n), pod_id="p", name="n"), phase=ContainerPhase.CREATED, created_at=n
        )
        for n in range(500)
    ]
    first = entries.encode(records, complete=True)
    assert entries.encode(records, complete=True) == first
    assert entries.encode(records[:3], complete=False) == first[:15]
    assert len(built) == 500
    assert entries.encode(records[:3], complete=True) == first[:15]
    assert entries.encode(records[3:5], complete=False) == first[15:25]
    assert len(built) == 502
    assert len(entries._known) == 3


def test_excerpts_are_short() -> None:
    assert validate.excerpt("a\n") == "'a\\n'"
    assert len(validate.excerpt("x" * 10_000)) < 70


def test_no_image_fills_a_list() -> None:
    """Clients take 16 MiB; the user is the one word of an image's author that lists show."""
    huge = Image(
        id="sha256:" + "1" * 64,
        repo_tags=(),
        repo_digests=(),
        size=1,
        config=ImageConfigOci(user="u" * (4 << 20)),
        layers=(),
        pinned=False,
    )
    assert image.image(huge).ByteSize() < 1000
