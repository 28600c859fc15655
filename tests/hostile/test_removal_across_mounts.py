"""A tree with the host's files mounted in it is removed without them, whenever they are mounted."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orlop.host import mounts
from orlop.linux.removal import remove_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Removal = Callable[[Path], None]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Files of the host, on the same file system as the tree: only the mount tells them apart."""
    found = tmp_path / "volume"
    (found / "deep").mkdir(parents=True)
    for name in ("a", "b", "deep/c"):
        (found / name).write_text("kept")
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    found = tmp_path / "bundle"
    (found / "volumes" / "0").mkdir(parents=True)
    (found / "config.json").write_text("{}")
    yield found
    mounts.unmount_below(found)


def _files(volume: Path) -> int:
    return sum(path.is_file() for path in volume.rglob("*"))


def test_without_the_guard_the_files_are_gone(tree: Path, volume: Path) -> None:
    mounts.bind(volume, tree / "volumes" / "0")
    with pytest.raises(OSError):
        shutil.rmtree(tree)
    assert _files(volume) == 0


def test_what_is_mounted_is_refused_and_named(tree: Path, volume: Path) -> None:
    mounts.bind(volume, tree / "volumes" / "0")
    (tree / "volumes" / "file").touch()
    mounts.bind(volume / "a", tree / "volumes" / "file")
    with pytest.raises(OSError, match=r"a mount is there.*volumes/(0|file)"):
        remove_tree(tree)
    assert _files(volume) == 3
    assert not (tree / "config.json").exists()
    with pytest.raises(OSError, match="a mount is there"):
        remove_tree(tree / "volumes" / "0")
    assert _files(volume) == 3
    mounts.unmount_below(tree)
    remove_tree(tree)
    assert not tree.exists()
    assert _files(volume) == 3


@pytest.mark.parametrize(("remove", "safe"), [(remove_tree, True), (shutil.rmtree, False)])
def test_what_is_mounted_meanwhile(tree: Path, volume: Path, remove: Removal, safe: bool) -> None:
    points = [tree / "volumes" / str(number) for number in range(20)]
    lost = False
    for _ in range(200):
        for point in points:
            point.mkdir(parents=True, exist_ok=True)

        def mount() -> None:
            for point in points:
                try:
                    mounts.bind(volume, point)
                except OSError:
                    continue

        thread = threading.Thread(target=mount)
        thread.start()
        with contextlib.suppress(OSError):
            remove(tree)
        thread.join()
        mounts.unmount_below(tree)
        lost = lost or _files(volume) < 3
        if lost:
            break
    assert lost is not safe
