"""Our .proto of NRI against the published one, but for what plug-ins in WebAssembly use."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from orlop.nri.api import nri_v1alpha1_pb2 as pb
from tests.e2e import contract

MODULE = "github.com/containerd/nri@v0.12.5"
LEFT_OUT = {"LogRequest", "LogRequest.Level"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    """The descriptor of the module's api.proto."""
    return contract.published(MODULE, "pkg/api/api.proto", tmp_path_factory.mktemp("nri-api"))


def test_it_is_the_published_one(published: FileDescriptorProto) -> None:
    ours = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(ours)
    assert (ours.package, ours.syntax) == (published.package, published.syntax)
    theirs = {name: fields for name, fields in contract.messages(published).items() if name not in LEFT_OUT}
    assert contract.messages(ours) == theirs
    assert contract.enums(ours) == {
        name: values for name, values in contract.enums(published).items() if name not in LEFT_OUT
    }
    calls = {key: one for key, one in contract.calls(published).items() if key[0] != "HostFunctions"}
    assert contract.calls(ours) == calls
