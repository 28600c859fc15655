"""Our .proto of CSI, and of the registration with a kubelet, against the published ones."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from orlop.csi.api import csi_v1_pb2, registration_pb2
from tests.e2e import contract

CSI = "github.com/container-storage-interface/spec@v1.13.0"
KUBELET = "k8s.io/kubelet@v0.36.3"


def described(descriptor: object) -> FileDescriptorProto:
    file = FileDescriptorProto()
    descriptor.CopyToProto(file)  # type: ignore[attr-defined]
    return file


def test_csi_is_the_published_one_but_for_what_is_alpha(tmp_path_factory: pytest.TempPathFactory) -> None:
    published = contract.published(CSI, "csi.proto", tmp_path_factory.mktemp("csi-api"))
    ours = described(csi_v1_pb2.DESCRIPTOR)
    assert (ours.package, ours.syntax) == (published.package, published.syntax)
    for part in (contract.messages, contract.enums, contract.calls):
        theirs, found = part(published), part(ours)  # type: ignore[operator]
        assert found == {name: theirs[name] for name in found}
    left_out = contract.calls(published).keys() - contract.calls(ours).keys()
    assert {name for service, name in left_out if service in ("Identity", "Controller", "Node")} == {
        "ControllerListVolumeHealth",
        "ControllerGetVolumeHealth",
        "GetSnapshot",
        "NodeGetVolumeHealth",
        "NodeGetStorageHealth",
    }


def test_the_registration_is_the_published_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = "pkg/apis/pluginregistration/v1/api.proto"
    published = contract.published(KUBELET, path, tmp_path_factory.mktemp("registration-api"))
    ours = described(registration_pb2.DESCRIPTOR)
    assert (ours.package, ours.syntax) == (published.package, published.syntax)
    for part in (contract.messages, contract.enums, contract.calls):
        assert part(ours) == part(published)  # type: ignore[operator]
