"""A .proto that somebody publishes in a Go module, as what protoc makes of it, to be compared with ours."""

from __future__ import annotations

import importlib.resources
import json
import shutil
import subprocess
import sys
import time
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

from tests.patience import PATIENCE


def published(module: str, path: str, scratch: Path, *, whole: bool = False) -> FileDescriptorProto:
    """The descriptor of the file ``path`` of ``module`` (with its version).

    With ``whole`` it may import other files of the module.
    """
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        pytest.skip("needs the go command to fetch the published API")
    command = [go, "mod", "download", "-json", module]
    # The proxy may not answer for once.
    for pause in (0, 2, 10):
        time.sleep(pause)
        done = subprocess.run(command, cwd=scratch, capture_output=True, timeout=300 * PATIENCE, check=False)
        if done.returncode == 0:
            break
    if done.returncode:
        pytest.skip(f"{module} cannot be downloaded: {done.stdout.decode()[-300:]}")
    source = Path(json.loads(done.stdout)["Dir"]) / path
    root = Path(json.loads(done.stdout)["Dir"]) if whole else source.parent
    included = importlib.resources.files("grpc_tools") / "_proto"
    output = scratch / "api.bin"
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc",
            f"-I{root}", f"-I{included}", f"--descriptor_set_out={output}", str(source.relative_to(root)),
        ],
        check=True,
    )  # fmt: skip
    (file,) = FileDescriptorSet.FromString(output.read_bytes()).file
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


Calls = dict[tuple[str, str], tuple[object, ...]]


def calls(file: FileDescriptorProto) -> Calls:
    """Each call by its service and name, with its types and whether it streams."""
    return {
        (service.name, method.name): (
            method.input_type, method.output_type, method.client_streaming, method.server_streaming
        )
        for service in file.service
        for method in service.method
    }  # fmt: skip


def messages(file: FileDescriptorProto) -> dict[str, dict[str, tuple[object, ...]]]:
    """The fields of each message."""
    return {
        name: {item.name: field(item) for item in message.field}
        for name, message in walk(list(file.message_type))
    }
