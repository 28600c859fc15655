"""The daemon's directories are closed, also those that an earlier version left open."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from orlop.host import privacy


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_directly_below_is_closed(tmp_path: Path) -> None:
    top = tmp_path / "root"
    for name in ("images", "process"):
        (top / name).mkdir(parents=True)
        (top / name).chmod(0o755)
    (top / "journal.db").touch(0o644)
    outside = tmp_path / "outside"
    outside.touch()
    outside.chmod(0o644)
    (top / "link").symlink_to(outside)
    privacy.close_top(top, private=("vms",), passable=("process",))
    assert {path.name: _mode(path) for path in top.iterdir() if not path.is_symlink()} == {
        "images": 0o700,
        "vms": 0o700,
        "process": 0o711,
        "journal.db": 0o600,
    }
    assert (_mode(top), _mode(outside)) == (0o711, 0o644)


def test_pods_of_an_earlier_version_lose_the_rights_of_others(tmp_path: Path) -> None:
    privacy.close_all(tmp_path / "absent")
    for name, mode in (("a", 0o711), ("b", 0o710)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    privacy.close_all(tmp_path)
    assert {path.name: _mode(path) for path in tmp_path.iterdir()} == {"a": 0o710, "b": 0o710}


@pytest.mark.parametrize("path", ["/", "/run", "/var/lib", "/tmp/."])
def test_a_directory_of_the_system_is_not_closed(path: str) -> None:
    with pytest.raises(OSError, match="alone"):
        privacy.close_top(Path(path))
