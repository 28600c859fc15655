"""Builds of the guest in a cache that several programs share: each finds its own, and removes no other's."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from orlop.config import GuestConfig
from orlop.errors import NotFound
from orlop.guestos import build, pruning, pythontree


def made(cache: Path, number: int, *, age: float = 0, agent: str = "") -> Path:
    """A build in a cache, last used ``age`` seconds ago, of this program's agent or another."""
    target = cache / f"{number:064x}"
    target.mkdir()
    for name in build._FILES:
        (target / name).write_text(name)
    manifest = build._Manifest(
        recipe=build._recipe(),
        agent=agent or pythontree.agent_digest(pythontree.agent_sources()),
        kernel="6.1",
        python="3.11",
        packages=(),
        sizes=tuple((name, len(name)) for name in build._FILES),
    )
    (target / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    os.utime(target, (time.time() - age,) * 2)
    return target


def current(cache: Path, target: Path) -> None:
    build._make_current(cache, target.name)


def test_the_oldest_go_unless_they_are_young(tmp_path: Path) -> None:
    old = [made(tmp_path, number, age=pruning.YOUNG + number) for number in range(1, 5)]
    young = made(tmp_path, 5, age=pruning.YOUNG / 2)
    base, older = tmp_path / "base-1", tmp_path / "base-2"
    for path in (base, older):
        path.mkdir()
    os.utime(older, (1, 1))
    current(tmp_path, old[3])
    assert {path.name for path in tmp_path.iterdir()} == {"current", old[3].name, young.name, base.name}


def test_what_was_removed_in_part_is_no_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, newer = tmp_path / "base-1", tmp_path / "base-2"
    for path in (base, newer):
        (path / "root").mkdir(parents=True)
        (path / "vmlinuz").write_text("kernel")
    os.utime(base, (1, 1))

    def cut_short(path: Path) -> None:
        (path / "vmlinuz").unlink()
        raise OSError(errno.EIO, "no more")

    with monkeypatch.context() as failing:
        failing.setattr(pruning, "remove_tree", cut_short)
        pruning.prune((base, newer), kept=1)
    assert not base.exists()
    (left,) = set(tmp_path.iterdir()) - {newer}
    own = made(tmp_path, 1)
    current(tmp_path, own)
    assert left.exists(), "a build may be at work there"
    os.utime(left, (1, 1))
    current(tmp_path, own)
    assert {path.name for path in tmp_path.iterdir()} == {"current", own.name, newer.name}


def test_one_that_somebody_uses_stays(tmp_path: Path) -> None:
    used, other = (made(tmp_path, number, age=10 * pruning.YOUNG) for number in (1, 2))
    words = "import sys; from pathlib import Path; from orlop.guestos.pruning import hold; "
    words += "kept = hold(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", words, used], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        for number in (3, 4):
            current(tmp_path, made(tmp_path, number))
        assert used.exists() and not other.exists()
        process.kill()
    current(tmp_path, made(tmp_path, 5))
    assert not used.exists()


def test_each_program_finds_its_own(tmp_path: Path) -> None:
    older, own = made(tmp_path, 1, age=20), made(tmp_path, 2, age=10)
    current(tmp_path, made(tmp_path, 3, agent="another"))
    assert build.find(GuestConfig(), tmp_path).image.parent == own
    (own / "vmlinuz").write_text("")
    assert build.find(GuestConfig(), tmp_path).image.parent == older
    (older / "manifest.json").unlink()
    with pytest.raises(NotFound, match="belongs to another version of this program: run `orlop guest build`"):
        build.find(GuestConfig(), tmp_path)


def test_who_looks_often_holds_a_build_once(tmp_path: Path) -> None:
    own = made(tmp_path, 1)
    current(tmp_path, own)
    guest = build.GuestInUse(GuestConfig(), tmp_path)
    for _ in range(3):
        guest.find()
    held = [entry for entry in Path("/proc/self/fd").iterdir() if os.path.realpath(entry) == os.fspath(own)]
    assert len(held) == 1
    guest.close()


def test_what_was_found_is_held_until_it_is_let_go(tmp_path: Path) -> None:
    own = made(tmp_path, 1)
    current(tmp_path, own)
    guest = build.GuestInUse(GuestConfig(), tmp_path)
    for _ in range(2):
        assert guest.find().image.parent == own
    os.utime(own, (1, 1))
    for number in (2, 3):
        current(tmp_path, made(tmp_path, number, agent="another"))
    assert own.exists()
    guest.close()
    os.utime(own, (1, 1))
    current(tmp_path, made(tmp_path, 4, agent="another"))
    assert not own.exists()
    with pytest.raises(NotFound, match="another version"):
        guest.find()
