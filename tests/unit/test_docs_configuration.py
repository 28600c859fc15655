"""docs/configuration.md names every key with its real default, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec

from orlop.config import Config

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
HEADING = re.compile(r"^#{2,3} (?:`\[([a-z.]+)\]`|Top level)$")
ROW = re.compile(r"^\| `([a-z_]+)` \| `(.*?)` \|")


def documented() -> dict[str, str]:
    found: dict[str, str] = {}
    section = ""
    for line in PAGE.read_text().splitlines():
        if heading := HEADING.match(line):
            section = f"{heading[1]}." if heading[1] else ""
        elif row := ROW.match(line):
            assert section + row[1] not in found, f"{section + row[1]} is documented twice"
            found[section + row[1]] = row[2]
    return found


def actual(value: msgspec.Struct, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for field in msgspec.structs.fields(value):
        inner = getattr(value, field.name)
        if isinstance(inner, msgspec.Struct):
            found |= actual(inner, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = json.dumps(inner)
    return found


def test_every_key_is_documented_with_its_default() -> None:
    assert documented() == actual(Config())
