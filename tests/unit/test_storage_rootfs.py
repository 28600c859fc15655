"""Paths inside an image never lead out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.errors import InvalidArgument, NotFound
from orlop.storage.rootfs import resolve_in

TARGETS = st.text("./axyzb", max_size=12)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/file").write_text("x")
    (root / "absolute").symlink_to("/a/b")
    (root / "a/up").symlink_to("../../../..")
    (root / "loop").symlink_to("loop")
    (root / "chain").symlink_to("absolute/../file")
    return root


@pytest.mark.parametrize(
    ("path", "end"),
    [
        ("", ""),
        ("a/b", "a/b"),
        ("/a//./b/", "a/b"),
        ("absolute", "a/b"),
        ("a/up", ""),
        ("a/up/a", "a"),
        ("chain", "a/file"),
    ],
)
def test_links_stay_inside(path: str, end: str, root: Path) -> None:
    assert resolve_in(root, path) == root / end


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("nowhere", NotFound),
        ("a/file/x", NotFound),
        ("../x", InvalidArgument),
        ("a/../../x", InvalidArgument),
        ("loop", InvalidArgument),
    ],
)
def test_what_leads_nowhere(path: str, error: type[Exception], root: Path) -> None:
    with pytest.raises(error):
        resolve_in(root, path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    links=st.lists(
        st.tuples(st.sampled_from("xyz"), st.text("./axyzb", min_size=1, max_size=12)), max_size=4
    ),
    path=st.text("./axyzb", max_size=12),
)
def test_any_links(links: list[tuple[str, str]], path: str, root: Path) -> None:
    for name, target in links:
        (root / "a" / name).unlink(missing_ok=True)
        (root / "a" / name).symlink_to(target)
    try:
        end = resolve_in(root, path)
    except (NotFound, InvalidArgument):
        return
    assert end == root or root in end.parents
    assert not end.is_symlink()
    assert ".." not in end.parts
    assert os.path.lexists(end)
