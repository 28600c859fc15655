"""Building the guest: the same bytes for the same inputs, and nothing lost when it fails."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orlop.config import GuestConfig
from orlop.errors import FailedPrecondition, NotFound
from orlop.guestos import download, pruning, pythontree
from orlop.guestos.build import build, find
from orlop.guestos.download import NetworkSilent
from tests.node import Node
from tests.patience import PATIENCE

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


async def test_builds_at_the_same_time_make_one(cache: Path) -> None:
    lines: list[str] = []
    one, two = await asyncio.gather(*(build(cache, progress=lines.append) for _ in range(2)))
    assert one == two
    assert lines.count("compiling the agent") == 1
    assert find(GuestConfig(), cache) == one


async def test_a_change_of_the_agent_makes_another_build(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    # That is of another program, which has its own.
    assert find(GuestConfig(), cache) == first
    # The one before is kept for the machines that still run it, older ones are not when hours have passed.
    monkeypatch.setattr(pruning, "YOUNG", 0)
    with (package / "guest/main.py").open("a") as file:
        file.write("\n# a third\n")
    third = await build(cache, package=package)
    assert third.image.exists()
    assert second.image.exists()
    assert not first.image.exists()
    with pytest.raises(NotFound, match="another version"):
        find(GuestConfig(), cache)


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


@pytest.fixture
async def silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A network in which everything takes connections and says nothing."""
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda reader, writer: held.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    conf = tmp_path / "apt.conf"
    conf.write_text(f'Acquire::http::Proxy "http://127.0.0.1:{port}";\n')
    monkeypatch.setenv("APT_CONFIG", os.fspath(conf))
    monkeypatch.setattr(download, "STALL", 3.0)
    yield
    server.close()
    for writer in held:
        writer.close()


@pytest.mark.parametrize("step", ["fetch", "refresh"])
async def test_a_silent_network_is_told_and_given_up(silence: None, tmp_path: Path, step: str) -> None:
    lines: list[str] = []
    started = time.monotonic()
    with pytest.raises(NetworkSilent, match="check this machine's network"):
        if step == "fetch":
            await download.fetch(["libffi8"], tmp_path, lines.append)
        else:
            await download.refresh(lines.append)
    assert time.monotonic() - started < 60 * PATIENCE
    assert "debian" in lines[0] or "waiting for the indexes" in lines[0]


async def test_a_download_says_how_far_it_is(tmp_path: Path) -> None:
    lines: list[str] = []
    await download.fetch(["libffi8", "zlib1g"], tmp_path, lines.append)
    assert len(list(tmp_path.glob("*.deb"))) == 2
    assert lines[0].startswith("downloading 2 packages from ") and lines[-1].endswith("MiB")


async def test_a_damaged_build_is_made_again(cache: Path) -> None:
    good = await build(cache)
    os.truncate(good.image, 100)
    with pytest.raises(NotFound, match="not complete"):
        find(GuestConfig(), cache)
    assert await build(cache) == good
    assert find(GuestConfig(), cache) == good


def test_a_daemon_holds_the_guest_that_it_boots(shared_node: Node) -> None:
    shared_node.wait_ready()
    build = find(GuestConfig(), shared_node.settings.root / "guest").image.parent
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    held = [fields for fields in locks if fields[1] == "FLOCK" and fields[4] == str(shared_node.pid)]
    assert str(build.stat().st_ino) in {fields[5].rpartition(":")[2] for fields in held}, locks
