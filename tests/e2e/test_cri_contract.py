"""Our .proto against the one that Kubernetes publishes: every name, number, type and label."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from orlop.cri.api import runtime_v1_pb2 as pb
from tests.e2e import contract

MODULE = "k8s.io/cri-api@v0.37.2"
"""Since 0.36.3 KeyValue.value is bytes; since 0.37 signals are called SIGNAL_*."""

GENERATED = ("cri/api/runtime_v1_pb2.py", "nri/api/nri_v1alpha1_pb2.py", "ttrpc/messages_pb2.py")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    """The descriptor of the module's api.proto."""
    return contract.published(MODULE, "pkg/apis/runtime/v1/api.proto", tmp_path_factory.mktemp("cri-api"))


@pytest.fixture(scope="module")
def ours() -> FileDescriptorProto:
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    return file


def test_package_and_syntax(published: FileDescriptorProto, ours: FileDescriptorProto) -> None:
    assert (ours.package, ours.syntax) == (published.package, published.syntax)


def test_messages(published: FileDescriptorProto, ours: FileDescriptorProto) -> None:
    assert contract.messages(ours) == contract.messages(published)
    theirs, mine = (dict(contract.walk(list(file.message_type))) for file in (published, ours))
    for name, message in theirs.items():
        assert mine[name].options.map_entry == message.options.map_entry


def test_enums(published: FileDescriptorProto, ours: FileDescriptorProto) -> None:
    assert contract.enums(ours) == contract.enums(published)


def test_services(published: FileDescriptorProto, ours: FileDescriptorProto) -> None:
    assert contract.calls(ours) == contract.calls(published)
    assert len(contract.calls(ours)) == 43


@pytest.mark.parametrize("name", GENERATED)
def test_the_generated_code_is_that_of_the_proto(name: str, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, root / "scripts/generate_proto.py", tmp_path], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()

    def description(path: Path) -> str:
        (line,) = [text for text in path.read_text().splitlines() if "AddSerializedFile" in text]
        return line

    assert description(tmp_path / "orlop" / name) == description(root / "src/orlop" / name)
