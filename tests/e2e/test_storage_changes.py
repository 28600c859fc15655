"""What an overlay's upper directory changes, on a real kernel, and what is read of somebody who tells it."""

from __future__ import annotations

import io
import os
import shutil
import socket
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.host import mounts
from orlop.linux import changes as listing
from orlop.linux import packing
from orlop.linux.changes import Change, ChangeReader, changes, mounted_in, packed


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


def unpacked(pieces: Iterator[bytes], into: Path) -> dict[str, tarfile.TarInfo]:
    """What GNU tar makes of an archive, and its entries."""
    into.mkdir()
    data = b"".join(pieces)
    subprocess.run(("tar", "-x", "--xattrs", "--xattrs-include=*", "-C", into), input=data, check=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {one.name: one for one in archive}


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def test_a_tree_is_packed_with_all_that_it_has(merged: Path, tmp_path: Path) -> None:
    """Owners, modes, links, devices, attributes, names that are no text; also while it changes."""
    odd = os.fsencode(merged) + b"/etc/\xff \xc3\xa9" + b"n" * 120
    Path(os.fsdecode(odd)).write_text("odd")
    (merged / "etc/first").write_bytes(b"x" * 700_001)
    os.chown(merged / "etc/first", 3_000_000, 44)
    (merged / "etc/first").chmod(0o4750)
    os.link(merged / "etc/first", merged / "etc/zweit")
    os.setxattr(merged / "etc/first", "user.note", b"\0\xff")
    (merged / "etc/link").symlink_to("/nowhere/" + "y" * 150)
    os.mkfifo(merged / "etc/pipe", 0o620)
    os.mknod(merged / "etc/null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.fspath(merged / "etc/socket"))
    top = opened(merged)
    try:
        entries = unpacked(packing.tree(top), tmp_path / "out")
        pieces = packing.tree(top)
        next(pieces)
        shutil.rmtree(merged / "same")
        assert b"".join(pieces).endswith(bytes(1024)), "what vanishes meanwhile is left out"
    finally:
        os.close(top)
    assert list(entries) == sorted(entries) and "etc/socket" not in entries
    assert {"anew/b/c", "gone/deep/file", "etc/second"} <= entries.keys(), "all layers are in it"
    out = tmp_path / "out/etc"
    first = (out / "first").stat()
    assert (first.st_uid, first.st_gid, stat.S_IMODE(first.st_mode)) == (3_000_000, 44, 0o4750)
    assert (out / "first").read_bytes() == b"x" * 700_001
    assert (out / "zweit").stat().st_ino == first.st_ino
    assert os.getxattr(out / "first", "user.note") == b"\0\xff"
    assert os.fspath((out / "link").readlink()) == "/nowhere/" + "y" * 150
    assert stat.S_ISFIFO((out / "pipe").stat().st_mode)
    assert (out / "null").stat().st_rdev == os.makedev(1, 3)
    assert (out / Path(os.fsdecode(odd)).name).read_text() == "odd"


def test_what_an_overlay_changes_is_a_layer(merged: Path, tmp_path: Path) -> None:
    (merged / "etc/first").write_text("changed")
    (merged / "etc/second").unlink()
    shutil.rmtree(merged / "gone")
    shutil.rmtree(merged / "anew")
    (merged / "anew/b").mkdir(parents=True)
    for place in ("dev/null", "data/inside", "data.not"):
        (merged / place).mkdir(parents=True)
    top = opened(tmp_path / "upper")
    try:
        entries = unpacked(packing.layer(top, mounted_in(("/data/",))), tmp_path / "out")
    finally:
        os.close(top)
    assert list(entries) == [
        "anew", "anew/.wh..wh..opq", "anew/b", "data.not", "etc", "etc/first", "etc/.wh.second", ".wh.gone",
    ]  # fmt: skip
    assert all(one.isfile() and not one.size for name, one in entries.items() if ".wh." in name)


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
