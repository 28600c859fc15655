"""What several runs of the tests make at once in their cache: one result, and nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conformance import tools


def test_two_runs_that_unpack_the_same_packages_share_the_first_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other is done while this one still downloads."""
    monkeypatch.setenv("ORLOP_CACHE", str(tmp_path))
    others: list[Path] = []

    def run(argv: Sequence[str | Path], *, cwd: Path | None = None) -> str:
        if argv[0] == "apt-get" and not others:
            others.append(Path())
            others[0] = tools.debian_packages(["one", "two"])
            (others[0] / "file").write_text("the other's")
        return ""

    monkeypatch.setattr(tools, "run", run)
    found = tools.debian_packages(["two", "one"])
    assert [found] == others
    assert (found / "file").read_text() == "the other's"
    assert [path.name for path in found.parent.iterdir()] == [found.name]


def test_what_cannot_have_its_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(OSError, match="absent"):
        tools.place(tmp_path / "made", tmp_path / "absent" / "target")


def test_what_is_made_once_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "below" / "target"

    def fail(scratch: Path) -> Path:
        (scratch / "half").touch()
        raise tools.ToolError("no compiler")

    with pytest.raises(tools.ToolError, match="no compiler"):
        tools.cached(target, fail)
    assert not list(target.parent.iterdir())

    def make(scratch: Path) -> Path:
        (scratch / "rest").touch()
        (scratch / "made").write_text("made")
        return scratch / "made"

    assert tools.cached(target, make).read_text() == "made"
    assert tools.cached(target, fail) == target
    assert list(target.parent.iterdir()) == [target]
