"""Our .proto of containerd's services for shims against the published ones, as far as ours go."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from orlop.shim import podspec
from orlop.shim.api import (
    events_pb2,
    forward_pb2,
    metrics_pb2,
    pod_pb2,
    process_pb2,
    sandbox_pb2,
    task_v2_pb2,
    task_v3_pb2,
    types_pb2,
)
from tests.e2e import contract
from tests.e2e.test_cri_contract import MODULE as CRI

API = "github.com/containerd/containerd/api@v1.11.1"
CGROUPS = "github.com/containerd/cgroups/v3@v3.1.3"
PUBLISHED = [
    (events_pb2.DESCRIPTOR, API, ["events/task.proto"]),
    (forward_pb2.DESCRIPTOR, API, ["services/ttrpc/events/v1/events.proto"]),
    (metrics_pb2.DESCRIPTOR, CGROUPS, ["cgroup2/stats/metrics.proto"]),
    (process_pb2.DESCRIPTOR, API, ["types/task/task.proto"]),
    (task_v2_pb2.DESCRIPTOR, API, ["runtime/task/v2/shim.proto"]),
    (sandbox_pb2.DESCRIPTOR, API, ["runtime/sandbox/v1/sandbox.proto"]),
    (
        types_pb2.DESCRIPTOR,
        API,
        ["types/mount.proto", "types/event.proto", "types/metrics.proto", "types/platform.proto"],
    ),
]


def ours(descriptor: FileDescriptor) -> FileDescriptorProto:
    found = FileDescriptorProto()
    descriptor.CopyToProto(found)
    return found


@pytest.mark.parametrize(
    ("descriptor", "module", "paths"), PUBLISHED, ids=lambda one: getattr(one, "package", "")
)
def test_what_there_is_is_the_published_one(
    descriptor: FileDescriptor, module: str, paths: list[str], tmp_path: Path
) -> None:
    theirs = [contract.published(module, path, tmp_path, whole=True) for path in paths]
    own = ours(descriptor)
    assert {(one.package, one.syntax) for one in theirs} == {(own.package, own.syntax)}
    messages = {name: fields for one in theirs for name, fields in contract.messages(one).items()}
    for name, fields in contract.messages(own).items():
        assert fields.items() <= messages[name].items(), name
    enums = {name: values for one in theirs for name, values in contract.enums(one).items()}
    assert contract.enums(own).items() <= enums.items()
    if own.service:
        assert contract.calls(own) == {
            key: call for one in theirs for key, call in contract.calls(one).items()
        }


def as_version_2(described: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(one.replace(".v3.", ".v2.") if isinstance(one, str) else one for one in described)


def test_version_3_of_the_task_service_is_version_2(tmp_path: Path) -> None:
    theirs = contract.published(API, "runtime/task/v3/shim.proto", tmp_path, whole=True)
    newer = {key: as_version_2(call) for key, call in contract.calls(theirs).items()}
    assert contract.calls(ours(task_v3_pb2.DESCRIPTOR)) == newer
    messages = contract.messages(theirs)
    for name, fields in contract.messages(ours(task_v2_pb2.DESCRIPTOR)).items():
        there = {key: as_version_2(value) for key, value in messages[name].items()}
        assert fields.items() <= there.items(), name


def as_published(described: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(
        one.replace(f".{pod_pb2.DESCRIPTOR.package}.", ".runtime.v1.") if isinstance(one, str) else one
        for one in described
    )


def test_what_containerd_says_of_a_pod_is_what_a_kubelet_says(tmp_path: Path) -> None:
    theirs = contract.published(CRI, "pkg/apis/runtime/v1/api.proto", tmp_path)
    messages, own = contract.messages(theirs), ours(pod_pb2.DESCRIPTOR)
    for name, fields in contract.messages(own).items():
        assert {key: as_published(value) for key, value in fields.items()}.items() <= messages[name].items()
    assert contract.enums(own).items() <= contract.enums(theirs).items()
    assert f"{theirs.package}.PodSandboxConfig" == podspec.KIND
