"""docs/configuration.md names every key with its real default and what it may be, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
from msgspec import inspect

from orlop.config import Config, allowed
from orlop.hypervisor.qemu.settings import QemuConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
HEADING = re.compile(r"^#{2,3} (?:`\[([a-z.]+)\]`|Top level)$")
ROW = re.compile(r"^\| `([a-z_]+)` \| `(.*?)` \| (.*?) \|")


def documented() -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    section = ""
    for line in PAGE.read_text().splitlines():
        if heading := HEADING.match(line):
            section = f"{heading[1]}." if heading[1] else ""
        elif row := ROW.match(line):
            assert section + row[1] not in found, f"{section + row[1]} is documented twice"
            found[section + row[1]] = row[2], row[3]
    return found


def actual(kind: inspect.Type, value: msgspec.Struct, prefix: str = "") -> dict[str, tuple[str, str]]:
    assert isinstance(kind, inspect.StructType)
    found: dict[str, tuple[str, str]] = {}
    for field in kind.fields:
        if field.name == "others":
            continue
        inner = getattr(value, field.name)
        if isinstance(inner, msgspec.Struct):
            found |= actual(field.type, inner, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = json.dumps(inner), allowed(field.type)
    return found


def test_every_key_is_documented_with_its_default_and_what_it_may_be() -> None:
    everything = actual(inspect.type_info(Config), Config())
    everything |= actual(inspect.type_info(QemuConfig), QemuConfig(), "vm.qemu.")
    assert documented() == everything
