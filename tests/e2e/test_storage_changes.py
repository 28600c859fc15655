"""What an overlay's upper directory changes, on a real kernel, and what is read of somebody who tells it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.host import mounts
from orlop.linux import changes as listing
from orlop.linux.changes import Change, ChangeReader, changes, packed


@pytest.fixture
def merged(tmp_path: Path) -> Iterator[Path]:
    """An overlay of two layers."""
    for name in ("low/etc", "low/gone/deep", "low/anew/b", "low/same", "top/etc", "upper", "work", "merged"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("etc/kept", "etc/first", "gone/deep/file", "anew/b/c", "anew/d", "file"):
        (tmp_path / "low" / name).write_text("below")
    (tmp_path / "top/etc/second").write_text("above")
    os.mknod(tmp_path / "top/file", 0o600 | 0o020000, os.makedev(0, 0))
    options = f"lowerdir={tmp_path}/top:{tmp_path}/low,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    mounts.mount("overlay", tmp_path / "merged", "overlay", options=options)
    yield tmp_path / "merged"
    mounts.unmount(tmp_path / "merged")


def told(tmp_path: Path) -> list[str]:
    layers = (f"{tmp_path}/top", f"{tmp_path}/low")
    return [f"{one.kind} {os.fsdecode(one.path)}" for one in changes(f"{tmp_path}/upper", layers)]


def test_what_was_done_to_the_files_of_an_image(merged: Path, tmp_path: Path) -> None:
    assert told(tmp_path) == []
    (merged / "etc/first").write_text("changed")
    (merged / "etc/new").symlink_to("first")
    (merged / "etc/second").unlink()
    # A file that takes another one's place has nothing of that.
    (merged / "etc/temporary").write_text("whole")
    (merged / "etc/temporary").rename(merged / "etc/kept")
    shutil.rmtree(merged / "gone")
    shutil.rmtree(merged / "anew")
    (merged / "anew/b").mkdir(parents=True)
    # The upper layer has hidden it, so that it is a new one.
    (merged / "file").write_text("new")
    (merged / "made").mkdir()
    (merged / "made/inside").write_text("x")
    assert told(tmp_path) == [
        "C /anew",
        "D /anew/d",
        "C /anew/b",
        "D /anew/b/c",
        "C /etc",
        "C /etc/first",
        "C /etc/kept",
        "A /etc/new",
        "D /etc/second",
        "A /file",
        "D /gone",
        "A /made",
        "A /made/inside",
    ]


def test_links_lead_nowhere_and_depth_has_an_end(merged: Path, tmp_path: Path) -> None:
    (merged / "same").rmdir()
    (merged / "same").symlink_to("/etc")
    assert told(tmp_path) == ["C /same"]
    deep = merged / "made"
    for _ in range(listing.MAX_DEPTH + 2):
        deep.mkdir()
        deep /= "d"
    with pytest.raises(ValueError, match="in one another"):
        told(tmp_path)


def test_what_is_told_in_pieces_is_checked() -> None:
    wanted = [Change("A", b"/a"), Change("C", b"/a\xff/\n"), Change("D", b"/" + b"x" * 4000)]
    data = b"".join(map(packed, wanted))
    for size in (1, 7, len(data)):
        reader = ChangeReader()
        found = [one for at in range(0, len(data), size) for one in reader.take(data[at : at + size])]
        reader.end()
        assert found == wanted
    for wrong in (
        b"\0",
        b"A\0",
        b"Aa\0",
        b"X/a\0",
        b"A/\0",
        b"A/a//b\0",
        b"A/../b\0",
        b"A/.\0",
        b"A/" + b"x" * 5000,
    ):
        with pytest.raises(ValueError, match=r"no change|longer"):
            ChangeReader().take(wrong)
    reader = ChangeReader()
    reader.take(b"A/a")
    with pytest.raises(ValueError, match="no end"):
        reader.end()
