"""Directories that upper layers only imply."""

from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path

import pytest

from orlop.images import convert
from orlop.images.erofsread import ErofsReader
from orlop.images.repair import Repair, name
from tests.unit.test_images_convert import Archive, check, run


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "say", lambda **_: None)


def repaired(tmp_path: Path, *archives: Archive) -> dict[bytes, str]:
    """What the layer on top holds: modes by path."""
    paths = []
    for number, archive in enumerate(archives):
        paths.append(tmp_path / f"{number}.erofs")
        run(archive.done(), paths[-1])
    with Repair(paths) as work:
        directories = work.directories()
        if not directories:
            return {}
        buffer = io.BytesIO()
        work.build(directories, buffer)
    image = tmp_path / "top.erofs"
    image.write_bytes(buffer.getvalue())
    check(image)
    found: dict[bytes, str] = {}
    with ErofsReader(image) as reader:

        def walk(above: bytes, nid: int) -> None:
            for part, child in reader.children(reader.inode(nid)).items():
                inode = reader.inode(child)
                found[above + part] = f"{stat.S_IMODE(inode.mode):o} {inode.uid}"
                walk(above + part + b"/", child)

        walk(b"", reader.root.nid)
    return found


def directory(archive: Archive, path: str, mode: int, uid: int = 0) -> Archive:
    return archive.add(path, tarfile.DIRTYPE, mode=mode, uid=uid)


def test_most_images_need_none(tmp_path: Path) -> None:
    lower = directory(Archive(), "etc", 0o755).add("etc/a")
    assert repaired(tmp_path, lower) == {}
    plain = directory(Archive(), "tmp", 0o1777)
    assert repaired(tmp_path, plain, directory(Archive(), "tmp", 0o700).add("tmp/x")) == {}


def test_the_lower_layer_says_how(tmp_path: Path) -> None:
    lower = directory(directory(directory(Archive(), "var", 0o711), "var/tmp", 0o1777), "srv", 0o700, 5)
    middle = Archive().add("other/x")
    upper = Archive().add("var/tmp/x").add("srv/deep/y").add("new/z")
    assert repaired(tmp_path, lower, middle, upper) == {
        b"var": "711 0",
        b"var/tmp": "1777 0",
        b"srv": "700 5",
    }


def test_what_is_hidden_says_nothing(tmp_path: Path) -> None:
    lower = directory(directory(directory(Archive(), "a", 0o700), "b", 0o700), "c", 0o700)
    middle = Archive().add(".wh.a").add("b/.wh..wh..opq").add("c", data=b"a file")
    upper = Archive().add("a/x").add("b/x").add("c/x")
    assert repaired(tmp_path, lower, middle, upper) == {}


def test_what_is_gone_does_not_come_back(tmp_path: Path) -> None:
    lower = directory(Archive(), "a", 0o700)
    assert repaired(tmp_path, lower, Archive().add("a/x"), Archive().add(".wh.a")) == {}


def test_the_root_too(tmp_path: Path) -> None:
    paths = [tmp_path / "0", tmp_path / "1"]
    run(Archive().add("./", tarfile.DIRTYPE, mode=0o711, uid=7).done(), paths[0])
    run(Archive().add("x").done(), paths[1])
    with Repair(paths) as work:
        assert list(work.directories()) == [b""]
        buffer = io.BytesIO()
        work.build(work.directories(), buffer)
    (tmp_path / "top").write_bytes(buffer.getvalue())
    with ErofsReader(tmp_path / "top") as reader:
        assert (stat.S_IMODE(reader.root.mode), reader.root.uid) == (0o711, 7)


def test_the_name_depends_on_everything() -> None:
    one = {b"tmp": (0o1777, 0, 0, 0, 0, ())}
    other = {b"tmp": (0o777, 0, 0, 0, 0, ())}
    assert len({name(["a"], one), name(["a"], other), name(["b"], one)}) == 3
    assert name(["a"], one) == name(["a"], one)
