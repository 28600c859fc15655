"""Building the guest: the same bytes for the same inputs, and nothing lost when it fails."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.config import GuestConfig
from orlop.errors import FailedPrecondition, NotFound
from orlop.guestos import pythontree
from orlop.guestos.build import build, find

CACHE = Path(os.environ.get("ORLOP_TEST_CACHE", Path.home() / ".cache/orlop")) / "guest"
FILES = ("vmlinuz", "initrd", "root.erofs")


@pytest.fixture
def cache() -> Iterator[Path]:
    """A cache of one's own that has the downloads of the common one."""
    directory = Path(tempfile.mkdtemp(prefix="orlop-guest-", dir=CACHE.parent))
    for base in CACHE.glob("base-*"):
        shutil.copytree(base, directory / base.name, symlinks=True)
    yield directory
    shutil.rmtree(directory)


async def test_two_builds_are_the_same_byte_for_byte(cache: Path) -> None:
    lines: list[str] = []
    one = await build(CACHE, progress=lines.append)
    two = await build(cache)
    assert one.digest == two.digest
    for name in FILES:
        assert (one.kernel.parent / name).read_bytes() == (two.kernel.parent / name).read_bytes()
    assert any(one.digest[:12] in line for line in lines)


async def test_a_change_of_the_agent_makes_another_build(cache: Path, tmp_path: Path) -> None:
    package = tmp_path / "orlop"
    for name, path in pythontree.agent_sources().items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, package / name)
    first = await build(cache, package=package)
    assert find(GuestConfig(), cache) == first
    with (package / "guest/main.py").open("a") as file:
        file.write("\n# another\n")
    second = await build(cache, package=package)
    assert second.digest != first.digest
    with pytest.raises(NotFound, match="another version"):
        find(GuestConfig(), cache)
    # The one before is kept for the machines that still run it, older ones are not.
    assert first.image.exists()
    with (package / "guest/main.py").open("a") as file:
        file.write("\n# a third\n")
    third = await build(cache, package=package)
    assert third.image.exists()
    assert second.image.exists()
    assert not first.image.exists()


async def test_an_agent_that_does_not_import_is_not_built(cache: Path, tmp_path: Path) -> None:
    good = await build(cache)
    package = tmp_path / "orlop"
    shutil.copytree(Path(pythontree.__file__).parents[1] / "wire", package / "wire")
    (package / "guest").mkdir()
    for name in ("__init__.py", "guest/__init__.py"):
        (package / name).touch()
    (package / "guest/main.py").write_text("import no_such_module\n")
    with pytest.raises(FailedPrecondition, match="no_such_module"):
        await build(cache, package=package)
    assert find(GuestConfig(), cache) == good
    assert not list(cache.glob(".work-*"))


async def test_a_damaged_build_is_made_again(cache: Path) -> None:
    good = await build(cache)
    os.truncate(good.image, 100)
    with pytest.raises(NotFound, match="not complete"):
        find(GuestConfig(), cache)
    assert await build(cache) == good
    assert find(GuestConfig(), cache) == good
