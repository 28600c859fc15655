"""The tree of a jail, asked for by many at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orlop.hypervisor.jail import tree


async def test_all_that_ask_at_once_get_one_tree(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    files = tuple(source / f"file{number}" for number in range(50))
    for path in files:
        path.write_bytes(b"x" * 10_000)
    contents = tree.TreeContents(objects=(), files=files)
    found = await asyncio.gather(*(tree.prepare(tmp_path / "root", contents) for _ in range(16)))
    (place,) = set(found)
    assert [path.read_bytes() == b"x" * 10_000 for path in sorted(place.rglob("file*"))] == [True] * 50
    assert list((tmp_path / "root").iterdir()) == [place]
