"""Directories that upper layers only imply."""

from __future__ import annotations

import os
import stat
import tarfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from orlop.images import convert, repair
from orlop.images.erofsread import ErofsReader
from tests.unit.test_images_convert import Archive, check, run


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "say", lambda **_: None)


def repair_of(paths: list[Path], image: Path) -> bool:
    """Make what must stand on top of the layers, if anything must; the daemon asks before it does."""
    descriptors = [os.open(path, os.O_RDONLY) for path in paths]
    with image.open("wb") as file:
        made = bool(convert.repair(descriptors, file, "sha256:0")["made"])
    with ExitStack() as stack:
        asked = repair.needed([stack.enter_context(ErofsReader(path)) for path in paths])
    assert asked or not made
    return made


def repaired(tmp_path: Path, *archives: Archive) -> dict[bytes, str]:
    """What the layer on top holds: modes by path."""
    paths = []
    for number, archive in enumerate(archives):
        paths.append(tmp_path / f"{number}.erofs")
        run(archive.done(), paths[-1])
    image = tmp_path / "top.erofs"
    if not repair_of(paths, image):
        return {}
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
    assert repair_of(paths, tmp_path / "top")
    with ErofsReader(tmp_path / "top") as reader:
        assert (stat.S_IMODE(reader.root.mode), reader.root.uid) == (0o711, 7)


def test_the_name_depends_on_the_layers() -> None:
    assert (
        len({repair.name(["a"]), repair.name(["b"]), repair.name(["a", "b"]), repair.name(["b", "a"])}) == 4
    )
    assert repair.name(["a"]) == repair.name(["a"])


def _many(tmp_path: Path, shape: str, count: int) -> list[Path]:
    """Two layers, of which the upper one implies ``count`` directories that the lower one describes."""
    lower, upper = Archive(), Archive()
    if shape == "wide":
        for number in range(count):
            directory(lower, f"d{number}", 0o700)
            upper.add(f"d{number}/x")
    else:
        path = "/".join(["d" * 3] * count)
        for depth in range(1, count + 1):
            directory(lower, path[: 4 * depth - 1], 0o700)
        upper.add(f"{path}/x")
    paths = [tmp_path / f"{shape}-{count}-{number}" for number in range(2)]
    run(lower.done(), paths[0])
    run(upper.done(), paths[1])
    return paths


def _seconds(paths: list[Path], top: Path) -> float:
    best = 1e9
    for _ in range(3):
        begun = time.process_time()
        assert repair_of(paths, top)
        best = min(best, time.process_time() - begun)
    return best


@pytest.mark.parametrize(("shape", "count"), [("wide", 800), ("deep", 90)])
def test_ten_times_the_directories_take_ten_times_as_long(tmp_path: Path, shape: str, count: int) -> None:
    few = _seconds(_many(tmp_path, shape, count), tmp_path / "few")
    many = _seconds(_many(tmp_path, shape, 10 * count), tmp_path / "many")
    assert many < 25 * few, f"{count}: {few:.3f} s, ten times as many: {many:.3f} s"
