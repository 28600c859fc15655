"""Root file systems on the host."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orlop.cli.demo.imagewriter import LayerWriter
from orlop.errors import NotFound
from orlop.host import mounts, process
from orlop.images import convert
from orlop.storage import rootfs
from tests.patience import PATIENCE


def layer(path: Path, **files: str) -> str:
    writer = LayerWriter()
    for name, text in files.items():
        writer.file(f"d/{name}", text)
    made = writer.finish()
    source = os.memfd_create("layer")
    try:
        os.write(source, made.blob.data)
        os.lseek(source, 0, os.SEEK_SET)
        with path.open("w+b") as output:
            convert.convert(
                source,
                output,
                size=len(made.blob.data),
                digest=made.blob.digest,
                diff_id=made.diff_id,
                limit=1 << 20,
            )
    finally:
        os.close(source)
    return os.fspath(path)


@pytest.fixture
def layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(convert, "say", lambda **_: None)
    return [layer(tmp_path / "1.erofs", a="lower", b="lower"), layer(tmp_path / "2.erofs", b="upper")]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Path]:
    # The separators of mount options in a path must not matter.
    path = tmp_path / "odd, name:with=all"
    yield path
    await rootfs.unmount_rootfs(path)
    assert mounts.mounts_below(tmp_path) == []
    assert not path.exists()


async def test_layers_and_what_is_written(layers: list[str], place: Path) -> None:
    root = await rootfs.mount_rootfs(layers, place)
    assert root == await rootfs.mount_rootfs(layers, place), "idempotent"
    assert mounts.mounts_below(place) == [root], "one mount is all there is"
    assert [(root / "d" / name).read_text() for name in "ab"] == ["lower", "upper"]
    (root / "new").write_bytes(bytes(100_000))
    (root / "d/a").unlink()
    assert not (root / "d/a").exists()
    used, inodes = rootfs.usage(place)
    assert 100_000 <= used < 150_000
    assert inodes == 3
    await rootfs.unmount_rootfs(place)
    await rootfs.unmount_rootfs(place)


async def test_a_kernel_that_mounts_no_files(
    layers: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mounts.mount

    def old(
        source: str | Path, target: str | Path, fstype: str, *, flags: int = 0, options: str = ""
    ) -> None:
        if fstype == "erofs":
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK))
        real(source, target, fstype, flags=flags, options=options)

    monkeypatch.setattr(mounts, "mount", old)
    root = await rootfs.mount_rootfs(layers, place)
    assert (root / "d/b").read_text() == "upper"
    await rootfs.unmount_rootfs(place)
    async with asyncio.timeout(60 * PATIENCE):
        # Who makes a mount namespace just now has all mounts of the host for a moment.
        while os.fsencode(place.parent) in (await process.run(["losetup", "-a"])).stdout:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_layer_that_is_gone_leaves_nothing(layers: list[str], place: Path) -> None:
    with pytest.raises(NotFound, match="gone"):
        await rootfs.mount_rootfs([layers[0], layers[1] + "x"], place)
    assert mounts.mounts_below(place) == []


async def test_an_image_volume(layers: list[str], place: Path) -> None:
    volume = await rootfs.mount_image(layers, place, "d")
    assert (volume / "b").read_text() == "upper"
    with pytest.raises(OSError, match="Read-only"):
        (volume / "b").write_text("no")
    with pytest.raises(NotFound, match="elsewhere"):
        await rootfs.mount_image(layers, place, "elsewhere")


@dataclass(frozen=True)
class Range:
    container_id: int = 0
    host_id: int = 200_000
    length: int = 65536


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A place that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="orlop-rootfs-") as name:
        Path(name).chmod(0o711)
        yield Path(name) / "c"


async def test_owners_in_a_user_namespace(layers: list[str], open_place: Path) -> None:
    place = open_place
    child = await process.spawn(["unshare", "--user", "sleep", "60"])
    try:
        proc = Path(f"/proc/{child.pid}")
        own = Path("/proc/self/ns/user").readlink()
        async with asyncio.timeout(60 * PATIENCE):
            while (proc / "ns/user").readlink() == own:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.01)
        for kind in ("uid_map", "gid_map"):
            (proc / kind).write_text("0 200000 65536")
        owners = rootfs.owners(proc / "ns/user", [Range()], [Range()])
        root = await rootfs.mount_rootfs(layers, place, owned_by=owners)
        assert (root / "d/a").stat().st_uid == 200_000
        script = f"cd '{root}' && echo more >> d/a && touch new && stat -c %u d/a new ."
        inside = ["nsenter", "--user", "-S", "0", "-G", "0", "-t", str(child.pid), "sh", "-c", script]
        done = await process.run(inside)
        assert done.stdout.split() == [b"0", b"0", b"0"]
        assert (root / "new").stat().st_gid == 200_000
    finally:
        child.kill()
        await child.wait()
        await rootfs.unmount_rootfs(place)
