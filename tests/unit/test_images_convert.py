"""From a layer's archive to an EROFS image, read back without mounting it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orlop.images import convert as converter
from orlop.images.convert import WrongDigest
from orlop.images.erofs import BLOCK
from orlop.images.erofsread import ErofsReader, Inode
from orlop.images.inflate import CutOff, LayerStream
from orlop.images.tarstream import ArchiveError, TooLarge

LIMIT = 64 << 20


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def run(
    blob: bytes,
    output: Path,
    *,
    plain: bytes | None = None,
    limit: int = LIMIT,
    size: int | None = None,
    expected: str = "",
) -> dict[str, int]:
    output.unlink(missing_ok=True)
    source = os.memfd_create("blob")
    try:
        with os.fdopen(os.dup(source), "wb") as file:
            file.write(blob)
        os.lseek(source, 0, os.SEEK_SET)
        with output.open("xb") as file:
            return converter.convert(
                source,
                file,
                size=len(blob) if size is None else size,
                digest=expected or digest(blob),
                diff_id=digest(blob if plain is None else plain),
                limit=limit,
            )
    finally:
        os.close(source)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter, "say", lambda **_: None)


class Archive:
    """A tar archive under construction."""

    def __init__(self, kind: int = tarfile.PAX_FORMAT) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=kind)  # noqa: SIM115

    def add(self, name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object) -> Archive:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def done(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


def check(path: Path) -> None:
    """The format's own checker, where it is installed."""
    if shutil.which("fsck.erofs"):
        subprocess.run(["fsck.erofs", path], check=True, capture_output=True)


def made(path: Path, blob: bytes) -> ErofsReader:
    run(blob, path)
    check(path)
    return ErofsReader(path)


def found(reader: ErofsReader, name: bytes) -> Inode:
    inode = reader.lookup(name)
    assert inode is not None, name
    return inode


def test_every_kind_of_entry(tmp_path: Path) -> None:
    xattrs = {"SCHILY.xattr.security.capability": "\1\0\0\2 caps", "SCHILY.xattr.user.a": "b"}
    long = "x" * 200 + "/" + "y" * 250
    blob = (
        Archive()
        .add("d", tarfile.DIRTYPE, mode=0o1777, uid=1, gid=70000)
        .add("d/f", data=b"hello", mode=0o4755, pax_headers={"mtime": "1700000000.123456789"})
        .add("d/big", data=b"z" * 10000, pax_headers=xattrs)
        .add("link", tarfile.SYMTYPE, linkname="d/f")
        .add("long-link", tarfile.SYMTYPE, linkname="/" + "l" * 4000)
        .add("hard", tarfile.LNKTYPE, linkname="d/f")
        .add("chr", tarfile.CHRTYPE, devmajor=1, devminor=300)
        .add("blk", tarfile.BLKTYPE, devmajor=8, devminor=1)
        .add("fifo", tarfile.FIFOTYPE, mode=0o600)
        .add(long, data=b"deep")
        .add("old", mtime=-5)
        .add("owner", uid=4_000_000_000)
        .done()
    )
    with made(tmp_path / "i", blob) as reader:
        directory = found(reader, b"d")
        assert stat.S_IMODE(directory.mode) == 0o1777
        assert (directory.uid, directory.gid, directory.nlink) == (1, 70000, 2)
        file = found(reader, b"d/f")
        assert (stat.S_IMODE(file.mode), file.nlink) == (0o4755, 2)
        assert (file.mtime, file.mtime_ns) == (1700000000, 123456789)
        assert reader.read(file) == b"hello"
        assert found(reader, b"hard").nid == file.nid
        big = found(reader, b"d/big")
        assert reader.read(big) == b"z" * 10000
        assert dict(reader.xattrs(big)) == {b"security.capability": b"\1\0\0\2 caps", b"user.a": b"b"}
        assert reader.read(found(reader, b"link")) == b"d/f"
        assert reader.read(found(reader, b"long-link")) == b"/" + b"l" * 4000
        assert found(reader, b"chr").place == (300 & 0xFF) | 1 << 8 | (300 & ~0xFF) << 12
        assert stat.S_ISBLK(found(reader, b"blk").mode)
        assert stat.S_ISFIFO(found(reader, b"fifo").mode)
        assert reader.read(found(reader, long.encode())) == b"deep"
        assert found(reader, b"old").mtime == -5
        assert found(reader, b"owner").uid == 4_000_000_000
        assert reader.root.nlink == 4


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_the_formats_of_tar(kind: int, tmp_path: Path) -> None:
    name = "a" * 90 + "/" + "b" * 90
    with made(tmp_path / "i", Archive(kind).add(name, data=b"1").done()) as reader:
        assert reader.read(found(reader, name.encode())) == b"1"


def test_a_directory_of_many_files(tmp_path: Path) -> None:
    archive = Archive()
    names = [f"many/{number:05}-{'n' * (number % 90)}" for number in range(3000)]
    random.Random(1).shuffle(names)
    for name in names:
        archive.add(name, data=name.encode())
    with made(tmp_path / "i", archive.done()) as reader:
        assert sorted(reader.children(found(reader, b"many"))) == sorted(n[5:].encode() for n in names)
        assert reader.read(found(reader, names[7].encode())) == names[7].encode()


@pytest.mark.parametrize("length", [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 8192, 1 << 20, (1 << 20) + 1])
def test_sizes_at_the_borders(length: int, tmp_path: Path) -> None:
    data = random.Random(length).randbytes(length)
    blob = Archive().add("a", data=data).add("b", data=b"behind").done()
    with made(tmp_path / "i", blob) as reader:
        assert reader.read(found(reader, b"a")) == data
        assert reader.read(found(reader, b"b")) == b"behind"


def test_whiteouts(tmp_path: Path) -> None:
    blob = (
        Archive()
        .add("a/.wh.gone")
        .add("b", tarfile.DIRTYPE)
        .add("b/.wh..wh..opq")
        .add("b/new", data=b"n")
        .add(".wh.c")
        .add("c/again", data=b"c")
        .add(".wh..wh.plnk/1.2", data=b"old")
        .add(".wh..wh.aufs")
        .add(".wh.file")
        .add("file", data=b"replaced")
        .done()
    )
    opaque = ((b"trusted.overlay.opaque", b"y"),)
    with made(tmp_path / "i", blob) as reader:
        assert found(reader, b"a/gone").is_whiteout
        assert reader.xattrs(found(reader, b"b")) == opaque
        assert list(reader.children(found(reader, b"b"))) == [b"new"]
        assert reader.xattrs(found(reader, b"c")) == opaque
        assert reader.read(found(reader, b"file")) == b"replaced"
        assert sorted(reader.children(reader.root)) == [b"a", b"b", b"c", b"file"]


def test_attributes_that_steer_overlayfs_are_dropped(tmp_path: Path) -> None:
    blob = Archive().add("d", tarfile.DIRTYPE, pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/etc"})
    with made(tmp_path / "i", blob.done()) as reader:
        assert reader.xattrs(found(reader, b"d")) == ()


def test_later_entries_replace_earlier_ones(tmp_path: Path) -> None:
    blob = (
        Archive()
        .add("a", data=b"first")
        .add("h", tarfile.LNKTYPE, linkname="a")
        .add("a", data=b"second")
        .add("d/x", data=b"x")
        .add("d", tarfile.SYMTYPE, linkname="e")
        .add("d/y", data=b"y")
        .done()
    )
    with made(tmp_path / "i", blob) as reader:
        assert reader.read(found(reader, b"a")) == b"second"
        first = found(reader, b"h")
        assert (reader.read(first), first.nlink) == (b"first", 1)
        assert reader.read(found(reader, b"d")) == b"e"
        assert reader.read(found(reader, b"e/y")) == b"y"


@pytest.mark.parametrize("target", ["../../../../etc", "/etc", "loop/x"])
def test_links_cannot_lead_out(target: str, tmp_path: Path) -> None:
    archive = Archive().add("loop", tarfile.SYMTYPE, linkname="loop")
    blob = archive.add("l", tarfile.SYMTYPE, linkname=target).add("l/passwd", data=b"x").done()
    try:
        with made(tmp_path / "i", blob) as reader:
            assert reader.read(found(reader, b"etc/passwd")) == b"x"
    except ArchiveError as error:
        assert "symbolic links" in str(error)


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (Archive().add("../x"), "out of"),
        (Archive().add("a/../../x"), "out of"),
        (Archive().add("x" * 256), "longer"),
        (Archive().add("/".join("d" * 1100)), "deeper"),
        (Archive().add("h", tarfile.LNKTYPE, linkname="nowhere"), "does not hold"),
        (Archive().add("d", tarfile.DIRTYPE).add("h", tarfile.LNKTYPE, linkname="d"), "directory"),
        (Archive().add("d/.wh."), "names nothing"),
        (Archive().add("l", tarfile.SYMTYPE, linkname="l" * 5000), "target"),
        (Archive().add("o", uid=-1), "uid"),
        (Archive(tarfile.GNU_FORMAT).add("t", mtime=1 << 70), "time"),
        (Archive(tarfile.GNU_FORMAT).add("t", mtime=-(1 << 70)), "time"),
        (Archive().add("a", pax_headers={"SCHILY.xattr.user.a": "x" * 65536}), "attribute"),
        (Archive().add("s", pax_headers={"size": str(1 << 62)}), "size"),
        (
            Archive().add(
                "s",
                pax_headers={"GNU.sparse.map": "", "GNU.sparse.size": str(1 << 63), "GNU.sparse.name": "s"},
            ),
            "impossible size",
        ),
    ],
)
def test_hostile_entries_are_refused(archive: Archive, why: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=why):
        run(archive.done(), tmp_path / "i")


def _global_header(records: dict[str, str]) -> bytes:
    """An extended header that holds for all entries that follow it."""
    return tarfile.TarInfo.create_pax_global_header(records)


def test_attributes_for_all_files_are_no_bomb(tmp_path: Path) -> None:
    header = _global_header({"SCHILY.xattr.user.a": "x" * 60000})
    archive = Archive()
    for number in range(5000):
        archive.add(f"f{number}")
    with pytest.raises(ArchiveError, match="extended attributes"):
        run(header + archive.done(), tmp_path / "i")
    assert (tmp_path / "i").stat().st_size < 1 << 20
    with pytest.raises(ArchiveError, match="global extended headers"):
        run(_global_header({"SCHILY.xattr.user.a": "x" * 70000}) + Archive().add("f").done(), tmp_path / "i")


def test_maps_of_sparse_files_count_before_they_are_made(tmp_path: Path) -> None:
    archive = Archive()
    for number in range(200):
        sparse = {"GNU.sparse.map": "", "GNU.sparse.size": str(1 << 43), "GNU.sparse.name": f"s{number}"}
        archive.add(f"s{number}", pax_headers=sparse)
    with pytest.raises(TooLarge):
        run(archive.done(), tmp_path / "i")
    assert (tmp_path / "i").stat().st_size < 1 << 20


def test_a_conversion_given_up_reads_nothing_of_the_next_file() -> None:
    threads = set(threading.enumerate())
    first = os.memfd_create("first")
    os.truncate(first, 32 << 20)
    with LayerStream(first, size=32 << 20, limit=LIMIT) as stream:
        assert stream.read(1) == b"\0"
        [reader] = set(threading.enumerate()) - threads
        # The number goes to another file, as it may as soon as it is closed.
        other = os.memfd_create("second")
        second = os.dup2(other, first)
        os.close(other)
        os.write(second, b"another layer")
        os.lseek(second, 0, os.SEEK_SET)
        assert stream.read(16 << 20) == bytes(16 << 20)
    reader.join(timeout=30)
    assert not reader.is_alive()
    assert os.read(second, 100) == b"another layer"
    os.close(second)


def test_compressions(tmp_path: Path) -> None:
    plain = Archive().add("f", data=bytes(100_000)).done()
    half = len(plain) // 2
    blobs = [
        plain,
        gzip.compress(plain),
        gzip.compress(plain[:half]) + gzip.compress(plain[half:]),
        zstandard.ZstdCompressor().compress(plain),
        zstandard.ZstdCompressor().compress(plain[:half]) + zstandard.ZstdCompressor().compress(plain[half:]),
    ]
    images = set()
    for blob in blobs:
        run(blob, tmp_path / "i", plain=plain)
        images.add((tmp_path / "i").read_bytes())
    assert len(images) == 1, "the same content makes the same image, whatever packed it"


def test_wrong_digests(tmp_path: Path) -> None:
    plain = Archive().add("f").done()
    blob = gzip.compress(plain)
    with pytest.raises(WrongDigest, match="the layer has"):
        run(blob, tmp_path / "i", plain=plain, expected=digest(b""))
    with pytest.raises(WrongDigest, match="content"):
        run(blob, tmp_path / "i", plain=b"other")


def test_a_blob_that_breaks_off(tmp_path: Path) -> None:
    blob = gzip.compress(Archive().add("f", data=os.urandom(5000)).done())
    with pytest.raises(CutOff):
        run(blob, tmp_path / "i", size=len(blob) + 1)
    for cut in (0, 5, 100, len(blob) - 1):
        with pytest.raises(ArchiveError):
            run(blob[:cut] or b"\x1f\x8b", tmp_path / "i")


def test_bombs(tmp_path: Path) -> None:
    plain = Archive().add("f", data=bytes(8 << 20)).done()
    with pytest.raises(TooLarge):
        run(gzip.compress(plain), tmp_path / "i", plain=plain, limit=4 << 20)


def test_more_entries_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter, "MAX_ENTRIES", 3)
    blob = Archive().add("a").add("b").add("c").add("d").done()
    with pytest.raises(ArchiveError, match="more than 3"):
        run(blob, tmp_path / "i")


@pytest.mark.skipif(not shutil.which("tar"), reason="needs tar")
@pytest.mark.parametrize(
    "options",
    [["--format=gnu"], ["--sparse-version=0.0"], ["--sparse-version=0.1"], ["--sparse-version=1.0"]],
)
def test_sparse_files(options: list[str], tmp_path: Path) -> None:
    source = tmp_path / "holes"
    with source.open("wb") as file:
        for offset, data in ((0, b"begin"), (1 << 20, b"middle" * 2000), ((5 << 20) - 3, b"end")):
            file.seek(offset)
            file.write(data)
        file.truncate(7 << 20)
    pax = [] if "--format=gnu" in options else ["--format=pax"]
    command = ["tar", "-C", tmp_path, "-S", *pax, *options, "-cf", "-", "holes"]
    blob = subprocess.run(command, check=True, capture_output=True).stdout
    assert len(blob) < 1 << 20
    with made(tmp_path / "i", blob) as reader:
        assert reader.read(found(reader, b"holes")) == source.read_bytes()
    assert (tmp_path / "i").stat().st_size < 1 << 20


names = st.lists(
    st.text("abc.é", min_size=1, max_size=6).filter(
        lambda p: p not in (".", "..") and not p.startswith(".wh")
    ),
    min_size=1,
    max_size=4,
).map("/".join)


ENDS_WITH_A_BLOCK = {
    **{f"{name}/a/a/a": b"\0" for name in ("b", "c", "aaa", "aa")},
    **{f"{name}/a/a/a": b"" for name in ("a.", "a", "é")},
    "aaaaa/a": b"\0",
    "aaaa/a/a": b"",
}
"""Files whose last inode ends a block, behind which fsck.erofs 1.5 reads on."""


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(names, st.binary(max_size=9000), max_size=12), kind=st.sampled_from(["gnu", "pax"])
)
@example(files=ENDS_WITH_A_BLOCK, kind="gnu")
def test_any_tree_comes_back(files: dict[str, bytes], kind: str, tmp_path: Path) -> None:
    archive = Archive(tarfile.GNU_FORMAT if kind == "gnu" else tarfile.PAX_FORMAT)
    for name, data in files.items():
        archive.add(name, data=data)
    blob = archive.done()
    # A file that is also a directory on a later name's way is replaced, as an unpacker would do.
    kept: dict[str, bytes] = {}
    for name, data in files.items():
        parents = {name[:at] for at in range(len(name)) if name[at] == "/"}
        kept = {n: d for n, d in kept.items() if n not in parents and not n.startswith(name + "/")}
        kept[name] = data
    with made(tmp_path / "i", blob) as reader:
        for name, data in kept.items():
            assert reader.read(found(reader, name.encode())) == data
    assert (tmp_path / "i").stat().st_size % BLOCK == 0


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_refused_not_guessed(data: st.DataObject, tmp_path: Path) -> None:
    archive = (
        Archive().add("a", data=b"1" * 600).add("b" * 150, data=b"2").add("c", tarfile.SYMTYPE, linkname="a")
    )
    blob = bytearray(archive.done())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blob) - 1))
        blob[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blob)))
    damaged = bytes(blob[: cut if data.draw(st.booleans()) else len(blob)])
    try:
        run(damaged, tmp_path / "i")
    except (ArchiveError, CutOff, TooLarge):
        return
    check(tmp_path / "i")
