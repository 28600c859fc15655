from pathlib import Path

import pytest

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


def test_a_template_is_found_again(tmp_path: Path) -> None:
    made = sealed(tmp_path)
    assert templates.load(tmp_path, made.key) == made
    assert not (tmp_path / "work").exists()


def test_a_new_template_replaces_the_one_of_the_same_size(tmp_path: Path) -> None:
    old = sealed(tmp_path, "a" * 64)
    new = sealed(tmp_path, "b" * 64)
    assert not old.directory.exists()
    assert templates.load(tmp_path, new.key) == new


def test_a_missing_one_is_data_loss(tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match="no valid manifest"):
        templates.load(tmp_path, "k" * 64)


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
        templates.load(tmp_path, template.key)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xff", b'{"key": 1}', b"[" * 10000])
def test_a_broken_manifest_is_data_loss(tmp_path: Path, content: bytes) -> None:
    template = sealed(tmp_path)
    (template.directory / "manifest.json").write_bytes(content)
    with pytest.raises(DataLoss):
        templates.load(tmp_path, template.key)


def test_a_foreign_template_is_refused(tmp_path: Path) -> None:
    template = sealed(tmp_path, "a" * 64)
    template.directory.rename(templates.directory_for(tmp_path, "b" * 64))
    with pytest.raises(DataLoss, match="another machine"):
        templates.load(tmp_path, "b" * 64)


def test_a_later_change_shows_in_the_stamp(tmp_path: Path) -> None:
    template = sealed(tmp_path)
    before = templates.stamp(template)
    path = template.directory / templates.MEMORY
    path.chmod(0o600)
    path.write_bytes(b"short")
    assert templates.stamp(template) != before
    path.unlink()
    with pytest.raises(DataLoss):
        templates.stamp(template)


def test_remove_is_idempotent(tmp_path: Path) -> None:
    template = sealed(tmp_path)
    templates.remove(tmp_path)
    templates.remove(tmp_path)
    assert not template.directory.exists()
