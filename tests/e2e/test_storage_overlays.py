"""Overlays put together anew with other owners, on a real kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.host import mounts
from orlop.sandbox.spec import IdMapping
from orlop.sandbox.vm.idmaps import user_namespace
from orlop.storage import overlays

OWNER = 3_000_000_000
MAPPINGS = (IdMapping(container_id=0, host_id=OWNER, length=65536),)


@pytest.fixture(params=["", ",redirect_dir=on"], ids=["plain", "redirecting"])
def merged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An overlay of two layers, one of them with a name that has what separates options in it."""
    for name in ("low,er:1", "lower2", "upper/diff", "upper/work", "merged"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "low,er:1/first").write_text("1")
    (tmp_path / "lower2/second").write_text("2")
    os.chown(tmp_path / "lower2/second", 33, 34)
    top = os.fspath(tmp_path / "low,er:1").replace(":", "\\:").replace(",", "\\,")
    options = f"lowerdir={top}:{tmp_path}/lower2,upperdir={tmp_path}/upper/diff,workdir={tmp_path}/upper/work"
    options += request.param
    mounts.mount("overlay", tmp_path / "merged", "overlay", options=options)
    yield tmp_path / "merged"
    mounts.unmount(tmp_path / "merged")


async def test_an_overlay_is_the_same_with_other_owners(merged: Path, tmp_path: Path) -> None:
    found = overlays.find(merged)
    assert found is not None
    assert found.lower == (f"{tmp_path}/low,er:1", f"{tmp_path}/lower2")
    assert found.upper == f"{tmp_path}/upper/diff"
    async with user_namespace(MAPPINGS, MAPPINGS) as userns:
        with overlays.anew(found, tmp_path / "place", userns, OWNER) as made:
            status = (made / "second").stat()
            assert (status.st_uid, status.st_gid) == (OWNER + 33, OWNER + 34)
            (made / "second").write_text("changed")
            mounts.as_owner(OWNER, (made / "new").touch)
        assert not (tmp_path / "place").exists()
    status = (tmp_path / "upper/diff/second").stat()
    assert (status.st_uid, status.st_gid, (merged / "second").read_text()) == (33, 34, "changed")
    assert ((tmp_path / "upper/diff/new").stat().st_uid, (merged / "new").stat().st_uid) == (0, 0)
    assert os.fspath(tmp_path / "place") not in Path("/proc/self/mountinfo").read_text()


async def test_of_an_overlay_over_another_all_layers_get_other_owners(merged: Path, tmp_path: Path) -> None:
    for name in ("top/diff", "top/work", "both"):
        (tmp_path / name).mkdir(parents=True)
    (merged / "second").unlink()
    options = f"lowerdir={merged},upperdir={tmp_path}/top/diff,workdir={tmp_path}/top/work"
    mounts.mount("overlay", tmp_path / "both", "overlay", options=options)
    try:
        found = overlays.find(tmp_path / "both")
        assert found is not None
        assert found.lower == (f"{tmp_path}/upper/diff", f"{tmp_path}/low,er:1", f"{tmp_path}/lower2")
        async with user_namespace(MAPPINGS, MAPPINGS) as userns:
            with overlays.anew(found, tmp_path / "place", userns, OWNER) as made:
                assert (made / "first").stat().st_uid == OWNER and not (made / "second").exists()
                mounts.as_owner(OWNER, (made / "new").touch)
        assert (tmp_path / "top/diff/new").exists() and not (merged / "new").exists()
    finally:
        mounts.unmount(tmp_path / "both")


async def test_what_cannot_be_put_together_leaves_nothing(merged: Path, tmp_path: Path) -> None:
    found = overlays.Overlay(lower=(f"{tmp_path}/lower2", f"{tmp_path}/none"), upper=f"{tmp_path}/upper/diff")
    async with user_namespace(MAPPINGS, MAPPINGS) as userns:
        with pytest.raises(OSError, match="none"), overlays.anew(found, tmp_path / "place", userns, OWNER):
            pass
    assert not (tmp_path / "place").exists()
    assert os.fspath(tmp_path / "place") not in Path("/proc/self/mountinfo").read_text()
    assert overlays.find(tmp_path) is None
