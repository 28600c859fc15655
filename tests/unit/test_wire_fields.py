"""Nothing crosses the wire for nobody: every field is set on one side and read on the other."""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import orlop
from orlop.wire import hello, messages, statistics, values

SOURCE = Path(orlop.__file__).parent
HOST = SOURCE / "sandbox" / "vm"
# What the guest's interface must be is found there.
NETWORK = SOURCE / "net"
GUEST = SOURCE / "guest"
# What Linux counts is read by code that both sides have, and shown as it is.
LINUX = SOURCE / "linux"
SHOWN = SOURCE / "cri" / "translate"
# The agent's own rehearsal sets everything.
REHEARSAL = "warm.py"


def inside(annotation: Any) -> Iterator[type]:
    """The wire's structures in an annotation."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from inside(argument)


def reachable(roots: list[type]) -> dict[type, set[str]]:
    """Structures that the roots are made of, with their fields."""
    found: dict[type, set[str]] = {}
    pending = list(roots)
    while pending:
        kind = pending.pop()
        if kind in found:
            continue
        hints = typing.get_type_hints(kind, include_extras=True)
        found[kind] = {field.name for field in dataclasses.fields(kind)}
        for name in found[kind]:
            pending += inside(hints[name])
    return found


ECHOED = {"Streams"}
"""The host says it, the guest repeats it."""

REQUESTS = list(messages.REQUESTS.values())
TO_GUEST = reachable(REQUESTS)
TO_HOST = reachable([*(kind.reply_type() for kind in REQUESTS), *messages.EVENTS.values()])


def trees(directory: Path) -> Iterator[tuple[ast.Module, str]]:
    for path in sorted(directory.rglob("*.py")):
        if path.name != REHEARSAL or directory != GUEST:
            module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
            yield ast.parse(path.read_text(encoding="utf-8"), str(path)), module


def origins(tree: ast.Module, module: str) -> dict[str, str]:
    """What the names that a module imports or defines stand for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found[node.name] = f"{module}.{node.name}"
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    return f"{dotted(node.value, names)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def fields_set(directory: Path) -> set[tuple[str, str]]:
    found = set()
    for tree, module in trees(directory):
        names = origins(tree, module)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = dotted(node.func, names)
                found |= {(called, keyword.arg) for keyword in node.keywords if keyword.arg}
    return found


def fields_read(directory: Path) -> set[str]:
    return {
        node.attr
        for tree, _ in trees(directory)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.parametrize(
    ("kinds", "writers", "readers"),
    [(TO_GUEST, (HOST, NETWORK), (GUEST,)), (TO_HOST, (GUEST, LINUX), (HOST, SHOWN))],
    ids=["to the guest", "to the host"],
)
def test_every_field_is_set_and_read(
    kinds: dict[type, set[str]], writers: tuple[Path, ...], readers: tuple[Path, ...]
) -> None:
    set_ = {one for place in writers for one in fields_set(place)}
    read = {one for place in readers for one in fields_read(place)}
    wrong = []
    for kind, fields in kinds.items():
        for field in sorted(fields):
            name = f"{kind.__name__}.{field}"
            if (f"{kind.__module__}.{kind.__name__}", field) not in set_ and kind.__name__ not in ECHOED:
                wrong.append(f"{name} is set by nobody")
            if field not in read:
                wrong.append(f"{name} is read by nobody")
    assert not wrong, "\n".join(wrong)


def test_every_structure_is_used() -> None:
    """A request that nobody sends is none."""
    defined = {
        kind
        for module in (messages, statistics, values)
        for kind in vars(module).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
    }
    unused = defined - TO_GUEST.keys() - TO_HOST.keys() - {messages.Failure, hello.Hello, messages.Request}
    assert not unused
    sent = {called for called, _ in fields_set(HOST)} | {
        dotted(node.func, origins(tree, module))
        for tree, module in trees(HOST)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert {kind.__name__ for kind in REQUESTS if f"{kind.__module__}.{kind.__name__}" not in sent} == set()
