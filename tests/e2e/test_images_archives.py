"""Images from files and into files: what other tools write is loaded, and what is saved they read."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import random
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orlop.cli.demo.imagewriter import LayerContent, LayerWriter, WrittenImage
from orlop.config import ImageConfig
from orlop.errors import DataLoss, FailedPrecondition, InvalidArgument, OrlopError, ResourceExhausted
from orlop.host import process
from orlop.images import archives, loading, saving
from orlop.images.erofsread import ErofsReader
from orlop.images.loading import Loader
from orlop.images.store import ImageStore
from orlop.linux import architecture
from tests.registry import Registry

SETTINGS = {"Env": ["A=b"], "Cmd": ["sh"], "User": "1000", "ExposedPorts": {"80/tcp": {}}}
ALIEN = "docker.io/library/alien:latest"


def _layer(name: str, data: bytes = b"x" * 5000) -> LayerContent:
    writer = LayerWriter()
    writer.directory("etc", 0o700, owner=7)
    writer.file(f"etc/{name}", data)
    writer.hard_link(f"etc/{name}.too", f"etc/{name}")
    writer.symbolic_link(f"etc/{name}.link", name)
    return writer.finish()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        base, top = _layer("base"), _layer("top")
        registry.push("app", ["1"], WrittenImage((base, top), SETTINGS))
        registry.push("other", ["1"], WrittenImage((base,), {}))
        yield registry


@asynccontextmanager
async def opened(root: Path, conf: str = "") -> AsyncIterator[ImageStore]:
    store = ImageStore(root, ImageConfig(registries_conf=conf))
    await store.open()
    try:
        yield store
    finally:
        await store.close()
        assert list((root / "ingest").iterdir()) == [], "something half-made is left"
        assert not list((root / "uses").iterdir()), "what was saved is still held"


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


async def saved(store: ImageStore, *names: str) -> bytes:
    return b"".join([piece async for piece in saving.save(store, names)])


def skopeo(served: Registry, *args: str) -> str:
    command = ["skopeo", "--registries-conf", served.conf, "--insecure-policy", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def tarred(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


def configuration(*diff_ids: str, **changed: object) -> bytes:
    own = {"architecture": architecture.own().debian, "os": "linux"}
    return json.dumps({**own, "rootfs": {"type": "layers", "diff_ids": diff_ids}, **changed}).encode()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def legacy(layer: bytes, tags: list[str] | None, **changed: object) -> dict[str, bytes]:
    """An archive as Docker wrote them before version 25."""
    listed = [{"Config": "c.json", "RepoTags": tags, "Layers": ["l/layer.tar"]}]
    return {
        "l/layer.tar": layer,
        "c.json": configuration(sha256(layer), **changed),
        "manifest.json": json.dumps(listed).encode(),
    }


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
async def test_what_skopeo_writes_is_the_image_that_a_pull_brings(
    kind: str, served: Registry, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    source = f"docker://{served.address}/app:1"
    skopeo(served, "copy", "--src-tls-verify=false", source, f"{kind}:{archive}:docker.io/some/app:7")
    async with opened(tmp_path / "pulled", served.conf) as store:
        pulled = await store.pull(f"{served.address}/app:1")
    async with opened(tmp_path / "loaded") as store:
        (image,) = await Loader(store).load(pieces(archive.read_bytes()), "more:2")
        assert image.repo_tags == ("docker.io/library/more:2", "docker.io/some/app:7")
        assert (image.config, [Path(one).name for one in image.layers]) == (
            pulled.config,
            [Path(one).name for one in pulled.layers],
        )
        if kind == "oci-archive":
            assert image.id == pulled.id
        packed = gzip.compress(archive.read_bytes())
        assert (await Loader(store).load(pieces(packed)))[0].id == image.id


async def test_what_is_saved_skopeo_reads_and_comes_back_as_one_image(
    served: Registry, tmp_path: Path
) -> None:
    archive = tmp_path / "saved.tar"
    names = (f"{served.address}/app:1", f"{served.address}/other:1")
    async with opened(tmp_path / "one", served.conf) as store:
        pulled = [await store.pull(name) for name in names]
        archive.write_bytes(await saved(store, *names))
        assert await saved(store, *names) == archive.read_bytes(), "the same every time"
    for number, image in enumerate(pulled):
        for place in (f"docker-archive:{archive}:{names[number]}", f"oci-archive:{archive}:{names[number]}"):
            told = json.loads(skopeo(served, "inspect", "--config", place))
            assert told["config"].get("Env", []) == list(image.config.env)
            where = tmp_path / f"unpacked{number}{place[:3]}"
            skopeo(served, "copy", place, f"dir:{where}")
            assert len(list(where.iterdir())) == len(image.layers) + 3
    async with opened(tmp_path / "two") as store:
        loaded = await Loader(store).load(pieces(archive.read_bytes()))
        assert [image.repo_tags for image in loaded] == [(name,) for name in names]
        assert [image.config for image in loaded] == [image.config for image in pulled]
        again = await saved(store, *names)
        assert again == archive.read_bytes(), "what was saved and loaded is saved as it was"
        for ours, theirs in zip(loaded[0].layers, pulled[0].layers, strict=True):
            assert _everything(Path(ours)) == _everything(Path(theirs))


def _everything(path: Path) -> dict[bytes, object]:
    """All that a layer says of all its files."""
    found: dict[bytes, object] = {}
    with ErofsReader(path) as layer:
        stack = [(b"", layer.root)]
        while stack:
            name, inode = stack.pop()
            children = layer.children(inode) if inode.is_directory else {}
            stack += [(name + b"/" + child, layer.inode(nid)) for child, nid in children.items()]
            device = inode.place if stat.S_ISCHR(inode.mode) else 0
            facts = (inode.mode, inode.uid, inode.gid, inode.mtime, inode.mtime_ns, inode.nlink, device)
            content = (
                sorted(children)
                if inode.is_directory
                else b"".join(data or bytes(size) for size, data in layer.pieces(inode))
            )
            found[name] = (*facts, inode.implied, layer.xattrs(inode), content)
    return found


async def test_every_kind_of_file_survives(tmp_path: Path) -> None:
    """What a layer of GNU tar holds comes back byte for byte, with holes, whiteouts and attributes."""
    root = tmp_path / "tree"
    (root / "deep" / ("n" * 200)).mkdir(parents=True)
    (root / "deep" / ("n" * 200) / b"\xff\xfe".decode(errors="surrogateescape")).write_bytes(b"odd")
    (root / "small").write_bytes(b"1")
    os.utime(root / "small", ns=(1, -1_500_000_000))
    (root / "large").write_bytes(os.urandom(3 << 20))
    with (root / "holes").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end of data" * 1000)
        file.truncate(20 << 20)
    os.link(root / "large", root / "zlarge")
    (root / "link").symlink_to("../" * 30 + "x" * 150)
    os.mkfifo(root / "pipe", 0o640)
    os.mknod(root / "device", 0o60600, os.makedev(300, 70_000))
    os.setxattr(root / "small", "user.binary", b"\0\xff\n=")
    os.chown(root / "small", 3_000_000_000, 5)
    command = [
        "tar",
        "-C",
        os.fspath(root),
        "--format=posix",
        "--sparse",
        "--xattrs",
        "--xattrs-include=*",
        "-c",
        ".",
    ]
    packed = (await process.run(command)).stdout
    hidden = tarred({"deep/.wh.gone": b"", "small/.wh..wh..opq": b""})
    async with opened(tmp_path / "store") as store:
        loader = Loader(store)
        first = await loader.import_tree(pieces(packed), "first", b'{"Cmd":["sh"]}')
        assert first.config.cmd == ("sh",)
        second = await loader.import_tree(pieces(hidden), "second")
        for image in (first, second):
            archive = await saved(store, image.id)
            (loaded,) = await loader.load(pieces(archive))
            before, after = (_everything(Path(one.layers[0])) for one in (image, loaded))
            assert before == after
            assert len(before) >= 3
            assert await saved(store, loaded.id) == archive


async def test_loads_of_one_image_at_one_time(tmp_path: Path) -> None:
    layer = tarred({"file": os.urandom(200_000)})
    archive = tarred(legacy(layer, ["alien:latest"]))
    other = tarred(legacy(layer, ["alien:latest", "second:1"], author="somebody else"))
    async with opened(tmp_path) as store:
        loader = Loader(store)
        await asyncio.gather(*(loader.load(pieces(one)) for one in (archive, other, archive)))
        images = store.list()
        assert len(images) == 2
        assert sorted(tag for image in images for tag in image.repo_tags) == [
            ALIEN,
            "docker.io/library/second:1",
        ], "each name leads to one image"
        assert len({image.layers for image in images}) == 1
        taken = asyncio.create_task(loader.load(_endless()))
        await asyncio.sleep(0)
        await store.remove(images[0].id)
        taken.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taken


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(1000)
        await asyncio.sleep(0.001)


LAYER = tarred({"file": b"content"})
GOOD = legacy(LAYER, ["alien:latest"])
BAD: dict[str, tuple[bytes, type[OrlopError], str]] = {
    "nothing": (b"", DataLoss, "empty"),
    # The same each time: one of many would begin as a compressed archive does.
    "noise": (random.Random(1).randbytes(4096), DataLoss, "no archive of images"),
    "a file system": (LAYER, DataLoss, "orlop import"),
    "cut off": (tarred(GOOD)[:1300], DataLoss, "ends inside a file"),
    "xz": (b"\xfd7zXZ\0" + bytes(100), InvalidArgument, "xz"),
    "a gzip bomb's beginning": (gzip.compress(tarred(GOOD))[:-20], DataLoss, "gzip stream"),
    "another layer": (
        tarred({**GOOD, "l/layer.tar": tarred({"file": b"c0ntent"})}),
        DataLoss,
        "has the digest",
    ),
    "no layer": (tarred({key: GOOD[key] for key in ("c.json", "manifest.json")}), DataLoss, "lacks"),
    "a layer outside": (
        tarred({key: GOOD[key] for key in ("c.json", "manifest.json")}, {"l/layer.tar": "/../../etc/shadow"}),
        DataLoss,
        "lacks",
    ),
    "links in a circle": (
        tarred(
            {key: GOOD[key] for key in ("c.json", "manifest.json")}, {"l/layer.tar": "m", "l/m": "layer.tar"}
        ),
        DataLoss,
        "lacks",
    ),
    "a name of no image": (tarred(legacy(LAYER, ["../../x"])), InvalidArgument, "../../x"),
    "another machine": (
        tarred(legacy(LAYER, None, architecture="riscv64")),
        FailedPrecondition,
        "is made for linux/riscv64",
    ),
    "no document": (tarred({**GOOD, "manifest.json": b"["}), DataLoss, "not a valid document"),
    "nested": (tarred({**GOOD, "manifest.json": b"[" * 100_000}), DataLoss, "not a valid document"),
    "no images": (tarred({**GOOD, "manifest.json": b"[]"}), DataLoss, "holds no image"),
    "a layout of nothing": (tarred({"index.json": b'{"manifests":[]}'}), DataLoss, "holds no image"),
    "a layout of a lie": (
        tarred(
            {
                "index.json": json.dumps({"manifests": [{"digest": sha256(b"x"), "size": 1}]}).encode(),
                "blobs/sha256/" + sha256(b"x")[7:]: b"y",
            }
        ),
        DataLoss,
        "does not match its digest",
    ),
    "two, of which the second lies": (
        tarred(
            {
                **GOOD,
                "d.json": configuration("sha256:" + "0" * 64),
                "manifest.json": json.dumps(
                    [
                        {"Config": "c.json", "RepoTags": ["alien:latest"], "Layers": ["l/layer.tar"]},
                        {"Config": "d.json", "RepoTags": ["alien:2"], "Layers": ["l/layer.tar"]},
                    ]
                ).encode(),
            }
        ),
        DataLoss,
        "has the digest",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_hostile_archives_leave_nothing(case: str, tmp_path: Path) -> None:
    data, kind, why = BAD[case]
    async with opened(tmp_path) as store:
        with pytest.raises(kind, match=why):
            await Loader(store).load(pieces(data))
        assert store.list() == []


async def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_ARCHIVE", 50_000)
    monkeypatch.setattr(archives, "MAX_ENTRIES", 5)
    many = tarred({str(number): b"" for number in range(6)})
    async with opened(tmp_path) as store:
        loader = Loader(store)
        for data in (bytes(50_001), gzip.compress(bytes(1 << 20))):
            with pytest.raises(ResourceExhausted):
                await loader.load(pieces(data))
        with pytest.raises(DataLoss, match="more than 5 entries"):
            await loader.load(pieces(many))
        for _ in range(loading.MAX_ARRIVING):
            await loader._arriving.acquire()
        with pytest.raises(ResourceExhausted, match="being loaded already"):
            await loader.load(pieces(many))


@pytest.mark.parametrize("settings", [b"[]", b"{", b'{"Cmd": 5}'])
async def test_settings_that_are_none(settings: bytes, tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(OrlopError, match=r"settings|configuration"):
            await Loader(store).import_tree(pieces(LAYER), "x", settings)
        assert store.list() == []
