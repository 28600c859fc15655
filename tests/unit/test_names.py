"""Names say what they are: no class name stands for two things."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import orlop

SOURCE = Path(orlop.__file__).parent


def test_no_class_name_stands_for_two_things() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        # The blocking client has the names of the other one: that is its promise.
        if path.name.endswith("_pb2.py") or path.name == "blocking.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            # Programs outside see these names alone, and the plainest are theirs.
            public = (
                path.parent.name == "client" and isinstance(node, ast.ClassDef) and node.name in orlop.__all__
            )
            if isinstance(node, ast.ClassDef) and not public:
                places[node.name].append(path.relative_to(SOURCE).as_posix())
    wrong = {name: found for name, found in places.items() if len(found) > 1}
    assert not wrong
    assert places["Value"] == ["value.py"]
