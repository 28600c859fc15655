"""What the agent reads in a container's root: a file that stays is read once, one that changes anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.guest.launch import lookup
from orlop.guest.launch.lookup import RootDirectory


@pytest.fixture
def root() -> Iterator[RootDirectory]:
    one = RootDirectory(os.getpid())
    yield one
    one.close()


@pytest.mark.parametrize("settled", [-1.0, 600.0], ids=["changed long ago", "changed now"])
def test_what_changes_is_read_anew(
    root: RootDirectory, tmp_path: Path, settled: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "_SETTLED", settled)
    file = tmp_path / "passwd"
    assert root.read(str(file)) == ""
    for text in ("one", "two", "three", "", "four"):
        (tmp_path / "aside").write_text(text)
        (tmp_path / "aside").rename(file)
        assert (root.read(str(file)), root.read(str(file))) == (text, text)
    file.write_text("longer")
    assert root.read(str(file)) == "longer"
    file.unlink()
    assert root.read(str(file)) == ""
    os.mkfifo(file)
    assert root.read(str(file)) == ""


def test_only_what_has_not_changed_for_long_is_kept(
    root: RootDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, real = tmp_path / "group", os.read
    reads: list[int] = []

    def read(fd: int, size: int) -> bytes:
        reads.append(fd)
        return real(fd, size)

    monkeypatch.setattr(os, "read", read)
    file.write_text("x" * 10)
    assert root.read(str(file)) == root.read(str(file)) and len(reads) == 2
    monkeypatch.setattr(lookup, "_SETTLED", -1.0)
    assert root.read(str(file)) == root.read(str(file)) == "x" * 10 and len(reads) == 3
    file.write_text("x" * (lookup._SMALL + 1))
    assert root.read(str(file)) == root.read(str(file)) and len(reads) == 5, "too large to be kept"
