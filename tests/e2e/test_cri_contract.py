"""Our .proto against the one that Kubernetes publishes: every name, number, type and label."""

from __future__ import annotations

import importlib.resources
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from orlop.cri.api import runtime_v1_pb2 as pb

MODULE = "k8s.io/cri-api@v0.37.2"
"""Since 0.36.3 KeyValue.value is bytes; since 0.37 signals are called SIGNAL_*."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    """The descriptor of the module's api.proto."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        pytest.skip("needs the go command to fetch the published API")
    scratch = tmp_path_factory.mktemp("cri-api")
    done = subprocess.run(
        [go, "mod", "download", "-json", MODULE], cwd=scratch, capture_output=True, timeout=300, check=False
    )
    if done.returncode:
        pytest.skip(f"{MODULE} cannot be downloaded: {done.stdout.decode()[-300:]}")
    source = Path(json.loads(done.stdout)["Dir"]) / "pkg/apis/runtime/v1"
    included = importlib.resources.files("grpc_tools") / "_proto"
    output = scratch / "api.bin"
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc",
            f"-I{source}", f"-I{included}", f"--descriptor_set_out={output}", "api.proto",
        ],
        check=True,
    )  # fmt: skip
    (file,) = FileDescriptorSet.FromString(output.read_bytes()).file
    return file


@pytest.fixture(scope="module")
def ours() -> FileDescriptorProto:
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    return file


def walk(messages: list[DescriptorProto], prefix: str = "") -> Iterator[tuple[str, DescriptorProto]]:
    for message in messages:
        name = f"{prefix}{message.name}"
        yield name, message
        yield from walk(list(message.nested_type), f"{name}.")


def field(value: FieldDescriptorProto) -> tuple[object, ...]:
    options = value.options
    return (
        value.number, value.type, value.label, value.type_name, options.deprecated, options.debug_redact,
        value.oneof_index if value.HasField("oneof_index") else None,
    )  # fmt: skip


def enums(file: FileDescriptorProto) -> dict[str, dict[str, int]]:
    def plain(enum: EnumDescriptorProto) -> dict[str, int]:
        return {value.name: value.number for value in enum.value}

    found = {enum.name: plain(enum) for enum in file.enum_type}
    for name, message in walk(list(file.message_type)):
        found.update({f"{name}.{enum.name}": plain(enum) for enum in message.enum_type})
    return found


def test_package_and_syntax(published: FileDescriptorProto, ours: FileDescriptorProto) -> None:
    assert (ours.package, ours.syntax) == (published.package, published.syntax)


def test_messages(published: FileDescriptorProto, ours: FileDescriptorProto) -> None:
    theirs, mine = (dict(walk(list(file.message_type))) for file in (published, ours))
    assert sorted(mine) == sorted(theirs)
    for name, message in theirs.items():
        expected = {item.name: field(item) for item in message.field}
        assert {item.name: field(item) for item in mine[name].field} == expected, name
        assert mine[name].options.map_entry == message.options.map_entry


def test_enums(published: FileDescriptorProto, ours: FileDescriptorProto) -> None:
    assert enums(ours) == enums(published)


def test_services(published: FileDescriptorProto, ours: FileDescriptorProto) -> None:
    def plain(file: FileDescriptorProto) -> dict[tuple[str, str], tuple[object, ...]]:
        return {
            (service.name, method.name): (
                method.input_type, method.output_type, method.client_streaming, method.server_streaming
            )
            for service in file.service
            for method in service.method
        }  # fmt: skip

    assert plain(ours) == plain(published)
    assert len(plain(ours)) == 43


def test_the_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, root / "scripts/generate_proto.py", tmp_path], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    made = tmp_path / "orlop/cri/api/runtime_v1_pb2.py"

    def description(path: Path) -> str:
        (line,) = [text for text in path.read_text().splitlines() if "AddSerializedFile" in text]
        return line

    assert description(made) == description(root / "src/orlop/cri/api/runtime_v1_pb2.py")
