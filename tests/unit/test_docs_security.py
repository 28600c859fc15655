"""The threat model names tests that exist, and every attack there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+(?:::\w+)?)`", PAGE)))


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_exists(name: str) -> None:
    file, _, function = name.partition("::")
    assert (ROOT / file).exists()
    assert not function or function in functions(ROOT / file)


def test_every_attack_is_named() -> None:
    attacks = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/hostile").glob("test_*.py")}
    assert attacks - {name.partition("::")[0] for name in NAMED} == set()


def test_every_row_of_a_table_with_tests_has_one() -> None:
    bare = []
    wanted = False
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            wanted = False
        elif line.endswith("| shown by |"):
            wanted = True
        elif wanted and not line.startswith("|---") and not re.search(r"`tests/|the next section", line):
            bare.append(line)
    assert not bare


def test_links_within_the_page_lead_somewhere() -> None:
    heads = {
        re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-")
        for head in re.findall(r"^##+ (.*)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= heads
