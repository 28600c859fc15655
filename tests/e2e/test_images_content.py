"""What a container sees of an image is what the reference unpacker makes of it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from orlop.cli.demo.imagewriter import LAYER_GZIP, LayerContent, WrittenBlob, WrittenImage
from orlop.config import ImageConfig
from orlop.host import process
from orlop.images.store import ImageStore
from orlop.storage import rootfs
from tests.registry import Registry


def archive(*entries: dict[str, Any]) -> LayerContent:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            fields = dict(entry)
            data = fields.pop("data", b"")
            info = tarfile.TarInfo(fields.pop("name"))
            info.size = len(data)
            headers = {"mtime": fields.pop("time", "1700000000.5")}
            for key, value in fields.pop("xattrs", {}).items():
                headers[f"SCHILY.xattr.{key}"] = value
            info.pax_headers = headers
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    raw = buffer.getvalue()
    diff_id = "sha256:" + hashlib.sha256(raw).hexdigest()
    return LayerContent(WrittenBlob(LAYER_GZIP, gzip.compress(raw, 6, mtime=0)), diff_id)


def directory(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "type": tarfile.DIRTYPE, "mode": 0o755, **fields}


def file(name: str, data: bytes = b"x", **fields: Any) -> dict[str, Any]:
    return {"name": name, "data": data, "mode": 0o644, **fields}


LOWER = archive(
    directory("./", mode=0o711, gid=3),
    directory("bin"),
    directory("etc"),
    directory("tmp", mode=0o1777),
    directory("home", uid=1000, gid=1000, mode=0o3750),
    directory("many"),
    *(file(f"many/file-{number:04}", str(number).encode()) for number in range(700)),
    file("bin/su", b"\x7fELF" * 3000, mode=0o4755),
    file("bin/ping", b"ping", mode=0o755, xattrs={"user.note": "value", "user.other": "z" * 300}),
    {"name": "bin/ping6", "type": tarfile.LNKTYPE, "linkname": "bin/ping"},
    {"name": "bin/sh", "type": tarfile.SYMTYPE, "linkname": "/bin/su", "mode": 0o777},
    {"name": "null", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "mode": 0o666},
    {"name": "disk", "type": tarfile.BLKTYPE, "devmajor": 7, "devminor": 300, "mode": 0o660, "gid": 6},
    {"name": "pipe", "type": tarfile.FIFOTYPE, "mode": 0o600},
    directory("gone"),
    file("gone/a"),
    file("gone-file"),
    directory("opaque"),
    file("opaque/hidden"),
    directory("becomes-file"),
    file("becomes-file/x"),
    file("becomes-directory"),
    directory("deep/er/and/deeper"),
    file("empty", b""),
    file("times", time="1234567890.123456789"),
    file("before-the-epoch", time="-86400"),
)
UPPER = archive(
    file(".wh.gone", b""),
    file(".wh.gone-file", b""),
    directory("opaque", mode=0o700),
    file("opaque/.wh..wh..opq", b""),
    file("opaque/shown"),
    file("becomes-file"),
    directory("becomes-directory", uid=5),
    file("becomes-directory/x"),
    directory("etc"),
    file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
    file("many/.wh.file-0003", b""),
    file("many/file-0004", b"changed", mode=0o600),
    directory("many", mode=0o711),
    {"name": "etc/mtab", "type": tarfile.SYMTYPE, "linkname": "../proc/mounts", "mode": 0o777},
)


IMPLYING = archive(
    file("tmp/new"),
    file("home/.profile"),
    file("opaque/more"),
    file("gone/again"),
    file("deep/er/x"),
)


def described(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything about every file below ``root``."""
    found: dict[str, tuple[Any, ...]] = {}
    inodes: dict[tuple[int, int], str] = {}
    for path in sorted(root.rglob("*")):
        name = os.fspath(path.relative_to(root))
        state = path.lstat()
        kind = stat.S_IFMT(state.st_mode)
        content: Any = ""
        if stat.S_ISREG(state.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(state.st_mode):
            content = path.readlink()
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = state.st_rdev
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
            if key.startswith("user.")
        }
        same_as = inodes.setdefault((state.st_dev, state.st_ino), name) if not path.is_dir() else ""
        owner = (state.st_uid, state.st_gid)
        found[name] = (oct(state.st_mode), owner, state.st_mtime_ns, content, xattrs, same_as)
    return found


@pytest.mark.parametrize(
    "layers", [(LOWER,), (LOWER, UPPER), (LOWER, UPPER, IMPLYING)], ids=["one", "two", "implying"]
)
async def test_the_same_as_umoci_unpacks(layers: tuple[LayerContent, ...], tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        registry.push("app", ["1"], WrittenImage(layers, {}))
        name = f"{registry.address}/app:1"
        oci = f"{tmp_path}/oci:1"
        await process.run(
            [
                "skopeo",
                "--insecure-policy",
                "copy",
                "--src-tls-verify=false",
                f"docker://{name}",
                f"oci:{oci}",
            ]
        )
        await process.run(["umoci", "unpack", "--image", oci, tmp_path / "unpacked"])
        store = ImageStore(tmp_path / "store", ImageConfig(registries_conf=registry.conf))
        await store.open()
        image = await store.pull(name)
        await store.close()
    for path in image.layers:
        await process.run(["fsck.erofs", path])
    expected = described(tmp_path / "unpacked/rootfs")
    assert len(expected) > 700
    where = tmp_path / "mounted"
    try:
        root = await rootfs.mount_rootfs(image.layers, where)
        actual = described(root)
        assert set(actual) == set(expected)
        # Directories that no entry describes have the time of the unpacking there.
        for name in ("deep", "deep/er", "deep/er/and", "gone", "home", "opaque", "tmp"):
            for found in (actual, expected):
                if name in found:
                    found[name] = (*found[name][:2], *found[name][3:])
        for one in (root, tmp_path / "unpacked/rootfs"):
            assert (stat.S_IMODE(one.stat().st_mode), one.stat().st_gid) == (0o711, 3)
        wrong = {name: (actual[name], expected[name]) for name in expected if actual[name] != expected[name]}
        assert wrong == {}
        volume = await rootfs.mount_image(image.layers, tmp_path / "volume", "many")
        assert (volume / "file-0005").read_bytes() == b"5"
        with pytest.raises(OSError, match="Read-only"):
            (volume / "new").touch()
    finally:
        await rootfs.unmount_rootfs(where)
        await rootfs.unmount_rootfs(tmp_path / "volume")
    assert not where.exists()
