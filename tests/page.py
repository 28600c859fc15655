"""What a page of the documentation tells people to do, for tests that do it."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(r"^```\w+\n((?:(?!```).*\n)*)```\n\*test: (\w+)\*$", re.M)


def blocks(page: str) -> dict[str, str]:
    """The blocks of a page that have a name."""
    found = [(name, text) for text, name in _BLOCK.findall((DOCS / page).read_text())]
    assert len(dict(found)) == len(found), "a name stands for one block"
    return dict(found)
