import mmap
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import DataLoss
from orlop.hypervisor.base import Accelerator, MachineShape, Template
from orlop.hypervisor.qemu import templates

SHAPE = MachineShape(memory_mib=192)
TCG = Accelerator(kind="tcg", reason="test")


def sealed(root: Path, key: str = "k" * 64) -> Template:
    work = root / "work"
    work.mkdir(parents=True)
    (work / templates.MEMORY).write_bytes(b"memory" * 1000)
    (work / templates.STATE).write_bytes(b"state" * 100)
    return templates.seal(work, root, key, SHAPE, TCG)


def loaded(root: Path, key: str) -> Template:
    (directory,) = templates.find(root, key)
    saved = templates.load(directory, key)
    saved.close()
    return saved.template


def test_a_template_is_found_again(tmp_path: Path) -> None:
    made = sealed(tmp_path)
    assert loaded(tmp_path, made.key) == made
    assert not (tmp_path / "work").exists()


def test_a_new_template_replaces_the_one_of_the_same_size(tmp_path: Path) -> None:
    old = sealed(tmp_path, "a" * 64)
    new = sealed(tmp_path, "b" * 64)
    assert not old.directory.exists()
    assert loaded(tmp_path, new.key) == new


def test_several_of_one_key_stand_beside_one_another(tmp_path: Path) -> None:
    first, second = sealed(tmp_path), sealed(tmp_path)
    os.utime(first.directory / "manifest.json", (1, 1))
    assert templates.find(tmp_path, first.key) == [second.directory, first.directory]
    assert 0 < first.made <= second.made
    templates.drop(second.directory)
    assert loaded(tmp_path, first.key) == first


def test_a_missing_one_is_data_loss(tmp_path: Path) -> None:
    assert templates.find(tmp_path, "k" * 64) == []
    with pytest.raises(DataLoss, match="no valid manifest"):
        templates.load(tmp_path / "none", "k" * 64)


@pytest.mark.parametrize("name", [templates.MEMORY, templates.STATE])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_seen(tmp_path: Path, name: str, damage: str) -> None:
    template = sealed(tmp_path)
    path = template.directory / name
    data = path.read_bytes()
    path.unlink()
    if damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "flip":
        path.write_bytes(b"X" + data[1:])
    with pytest.raises(DataLoss):
        templates.load(template.directory, template.key)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xff", b'{"key": 1}', b"[" * 10000])
def test_a_broken_manifest_is_data_loss(tmp_path: Path, content: bytes) -> None:
    template = sealed(tmp_path)
    (template.directory / "manifest.json").write_bytes(content)
    with pytest.raises(DataLoss):
        templates.load(template.directory, template.key)


def test_a_foreign_template_is_refused(tmp_path: Path) -> None:
    template = sealed(tmp_path, "a" * 64)
    with pytest.raises(DataLoss, match="another machine"):
        templates.load(template.directory, "b" * 64)


def test_what_was_loaded_cannot_be_changed(tmp_path: Path) -> None:
    template = sealed(tmp_path)
    saved = templates.load(template.directory, template.key)
    memory, state = saved.open_memory(), saved.open_state()
    for file in (memory, state):
        with pytest.raises(OSError):
            os.pwrite(file, b"X", 0)
        with pytest.raises(OSError):
            os.ftruncate(file, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(memory, 0, mmap.MAP_SHARED)
    with mmap.mmap(memory, 0, mmap.MAP_PRIVATE) as private:
        private[0] = 1
    # Nor by the file that it came from, with its times put back.
    path = saved.template.directory / templates.MEMORY
    before = path.stat()
    path.chmod(0o600)
    path.write_bytes(b"X" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.pread(memory, 6, 0) == b"memory"
    assert os.read(state, 5) == b"state"
    assert os.read(saved.open_state(), 5) == b"state"
    with pytest.raises(DataLoss):
        templates.load(template.directory, template.key)


def test_drop_is_idempotent(tmp_path: Path) -> None:
    template = sealed(tmp_path)
    templates.drop(template.directory)
    templates.drop(template.directory)
    assert not template.directory.exists()


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 20), st.booleans()), max_size=6),
    st.integers(0, 4096),
)
def test_the_digest_does_not_depend_on_holes(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int, bool]], tail: int
) -> None:
    directory = tmp_path_factory.mktemp("digest")
    sparse, full = directory / "sparse", directory / "full"
    with sparse.open("wb") as file:
        for page, pages, zero in pieces:
            file.seek(page * 4096)
            file.write((b"\0" if zero else b"x") * (pages * 4096))
        file.truncate(130 * 4096 + tail)
    full.write_bytes(sparse.read_bytes())
    assert templates._digest(sparse) == templates._digest(full)
    with full.open("r+b") as file:
        file.seek(125 * 4096)
        file.write(b"y")
    assert templates._digest(sparse) != templates._digest(full)


def test_the_digest_of_a_hole_and_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 1 << 30)
    assert templates._digest(tmp_path / "empty") == templates._digest(tmp_path / "hole")
