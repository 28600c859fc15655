"""What the store remembers, and what it makes of what a crash has left."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import logging
import os
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest

from orlop.config import ImageConfig
from orlop.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OrlopError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from orlop.images import documents
from orlop.images.failures import failure, last_message, retryable
from orlop.images.loading import Loader
from orlop.images.model import ImageConfigOci, RegistryAuth
from orlop.images.records import ImageRecord, Records, boot_id
from orlop.images.store import ImageStore
from orlop.linux import architecture
from orlop.native.api import native_v1_pb2 as pb
from orlop.native.archives import ArchiveCalls


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


def put(root: Path, letter: str, layers: str, *tags: str, pulled_at: int = 1, unsettled: str = "") -> None:
    records = Records(root)
    records.load()
    (root / "layers").mkdir(exist_ok=True)
    for layer in layers:
        (root / "layers" / f"{layer * 64}.erofs").write_bytes(bytes(4096))
    record = ImageRecord(
        id=digest(letter),
        config=ImageConfigOci(user="1"),
        diff_ids=tuple(digest(layer) for layer in layers),
        tags=tags,
        pulled_at=pulled_at,
        unsettled=unsettled,
    )
    records.save_images([record])


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[ImageStore]:
    store = ImageStore(root, ImageConfig())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def layers(root: Path) -> str:
    return "".join(sorted(path.name[0] for path in (root / "layers").iterdir()))


async def test_an_empty_store(tmp_path: Path) -> None:
    async with opened(tmp_path / "new") as store:
        assert store.list() == []
        assert store.status("busybox") is None
        await store.remove("busybox")
        await store.release("nobody")
        assert (await store.fs_info()).used_bytes == 0


async def test_images_are_found_by_every_name(tmp_path: Path) -> None:
    put(tmp_path, "a", "12", "docker.io/library/busybox:latest")
    put(tmp_path, "b", "1", "x.y/z:1")
    async with opened(tmp_path) as store:
        for name in ("busybox", "docker.io/library/busybox:latest", digest("a"), "a" * 64, "aaaa"):
            image = store.status(name)
            assert image is not None, name
            assert image.id == digest("a")
        for name in ("busybox:1", "x.y/z", "c" * 64, "", "a", "../a", "aa aa"):
            assert store.status(name) is None, name


async def test_shared_layers_and_containers(tmp_path: Path) -> None:
    put(tmp_path, "a", "12", "a.b/a:1")
    put(tmp_path, "b", "13", "a.b/b:1")
    async with opened(tmp_path) as store:
        await store.use("a.b/a:1", "c1")
        await store.use("a.b/b:1", "c1")
        await store.use("a.b/a:1", "c2")
        await store.remove("a.b/a:1")
        with pytest.raises(NotFound, match="pull it first"):
            await store.use(digest("a"), "c3")
        with pytest.raises(InvalidArgument):
            await store.use("a.b/b:1", "../c")
        await store.remove("a.b/b:1")
        assert layers(tmp_path) == "123"
    async with opened(tmp_path) as store:
        assert layers(tmp_path) == "123"
        await store.reconcile(["c2"])
        assert layers(tmp_path) == "12"
        await store.release("c2")
        assert layers(tmp_path) == ""


async def test_what_a_crash_leaves(tmp_path: Path) -> None:
    put(tmp_path, "a", "1", "a.b/whole:1")
    put(tmp_path, "b", "2", "a.b/unsynced:1", unsettled="another-boot")
    put(tmp_path, "c", "3", "a.b/lost:1")
    (tmp_path / "layers" / f"{'3' * 64}.erofs").unlink()
    (tmp_path / "images/damaged.json").write_text('{"id": ')
    (tmp_path / "images/x.1.tmp").write_text("half")
    (tmp_path / "ingest").mkdir()
    (tmp_path / "ingest/half.erofs").write_text("half")
    (tmp_path / "ingest/copy-1").mkdir()
    (tmp_path / "ingest/copy-1/x").write_text("half")
    async with opened(tmp_path) as store:
        assert [image.id for image in store.list()] == [digest("a")]
    assert [path.name for path in (tmp_path / "images").iterdir()] == [f"{'a' * 64}.json"]
    assert list((tmp_path / "ingest").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM])
async def test_a_record_that_cannot_be_read_just_now_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """With the layers that it names, of an image and of what a container uses."""
    put(tmp_path, "a", "12", "a.b/a:1")
    put(tmp_path, "b", "34", "a.b/b:1")
    async with opened(tmp_path) as store:
        await store.use("a.b/b:1", "c1")
        await store.remove("a.b/b:1")
    long_ago = time.time() - 10**6
    for layer in (tmp_path / "layers").iterdir():
        os.utime(layer, (long_ago, long_ago))
    whole = Path.read_bytes
    for failing in ("images", "uses"):

        def read_bytes(path: Path, failing: str = failing) -> bytes:
            if path.parent.name == failing:
                raise OSError(number, os.strerror(number), os.fspath(path))
            return whole(path)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", read_bytes)
            with pytest.raises(Unavailable, match=rf"{failing}/.*\.json cannot be read: .*start again"):
                async with opened(tmp_path):
                    pass
    async with opened(tmp_path) as store:
        assert [image.id for image in store.list()] == [digest("a")]
        await store.reconcile(["c1"])
        assert layers(tmp_path) == "1234"


async def test_a_name_that_two_images_have_belongs_to_the_later(tmp_path: Path) -> None:
    put(tmp_path, "a", "1", "a.b/c:1", "a.b/c:2", pulled_at=5)
    put(tmp_path, "b", "2", "a.b/c:1", pulled_at=9)
    for _ in range(2):
        async with opened(tmp_path) as store:
            found = store.status("a.b/c:1")
            assert found is not None
            assert found.id == digest("b")
            older = store.status(digest("a"))
            assert older is not None
            assert older.repo_tags == ("a.b/c:2",)


async def test_layers_of_broken_pulls_wait_for_the_next_try(tmp_path: Path) -> None:
    put(tmp_path, "a", "1")
    put(tmp_path, "b", "2")
    Records(tmp_path).delete_image(digest("b"))
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    async with opened(tmp_path) as store:
        assert layers(tmp_path) == ("12" if started < time.time() - 1 else "1")
        assert await store.collect() == 0
        assert await store.collect(unfinished_for=0) > 0
        assert layers(tmp_path) == "1"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("reading manifest 1 in a/b: manifest unknown: manifest unknown", NotFound),
        ("reading manifest: name unknown: repository name not known to registry", NotFound),
        ("Requesting bear token: invalid status code from registry 404 (Not Found)", NotFound),
        ("unauthorized: authentication required", Unauthenticated),
        ("unable to retrieve auth token: invalid username/password: unauthorized", Unauthenticated),
        ("denied: requested access to the resource is denied", PermissionDenied),
        ("dial tcp 1.2.3.4:443: connect: connection refused", Unavailable),
        ("dial tcp: lookup x: no such host", Unavailable),
        ("http: server gave HTTP response to HTTPS client", FailedPrecondition),
        ("x509: certificate signed by unknown authority", FailedPrecondition),
        ("toomanyrequests: You have reached your pull rate limit", ResourceExhausted),
        ("write /var/tmp/x: no space left on device", ResourceExhausted),
        ("corrupted blob, expecting sha256:1, got sha256:2", DataLoss),
        ("Source image rejected: Running image x is rejected by policy.", PermissionDenied),
        ('Error parsing image name "docker://UP/x:1": invalid reference format: it must be', InvalidArgument),
        ('Get "https://x.y:99999/v2/": dial tcp: address 99999: invalid port', InvalidArgument),
        ("something never seen", Unavailable),
        ("reading manifest 1 in 127.0.0.1:40145/nowhere: manifest unknown: manifest unknown", NotFound),
        ('Get "http://[::1]:40145/v2/": dial tcp [::1]:40145: connect: connection refused', Unavailable),
        ("pinging container registry 127.0.0.1:40455: connection reset by peer", Unavailable),
        ("reading manifest v1 in h.example/denied/signature: manifest unknown", NotFound),
        ("reading blob sha256:401404: EOF", Unavailable),
        (
            'Error parsing image name "docker://h:1/denied:2": received 401 from h:1',
            Unauthenticated,
        ),
    ],
)
def test_what_skopeo_says(message: str, kind: type[OrlopError]) -> None:
    error = failure("some/image:1", message)
    assert type(error) is kind
    assert "some/image:1" in str(error)
    assert retryable(error) == (kind is Unavailable)


def test_the_message_in_a_log_line() -> None:
    line = 'time="2026-01-01T00:00:00Z" level=fatal msg="it is \\"so\\"" x=1'
    assert last_message(f"warning\n{line}\n") == 'it is "so"'
    assert last_message("plain\n\n") == "plain"
    assert last_message("") == ""


async def test_a_sync_that_breaks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "a", "1", "a.b/new:1", unsettled=boot_id())
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def broken(paths: object) -> None:
        loop.call_soon_threadsafe(started.set)
        raise RuntimeError("the disk is made of cheese")

    monkeypatch.setattr("orlop.images.store.sync", broken)
    async with opened(tmp_path):
        await started.wait()
        said: list[logging.LogRecord] = []
        async with asyncio.timeout(20):
            while not said:
                await asyncio.sleep(0.05)
                said = [record for record in caplog.records if record.name.startswith("orlop.")]
        assert [digest("a") in record.getMessage() for record in said] == [True]


async def test_a_registry_token_is_not_put_into_a_command_line(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(InvalidArgument, match="registry token"):
            await store.pull("localhost/app:1", RegistryAuth(registry_token="secret"))


async def test_who_turns_away_from_an_archive_leaves_nothing_held(tmp_path: Path) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))

    async def sent() -> AsyncIterator[bytes]:
        yield made.getvalue()

    async with opened(tmp_path) as store:
        image = await Loader(store).import_tree(sent(), "localhost/a:1")
        saved = ArchiveCalls(store, Loader(store)).save_images(pb.SaveImagesRequest(names=[image.id]))
        assert (await anext(saved)).data
        await saved.aclose()
        assert not list((tmp_path / "uses").iterdir())
        assert not list(store.layers.ingest.iterdir())


async def test_a_layer_more_makes_another_image(tmp_path: Path) -> None:
    """It comes back from an archive as it was made, and its base may go meanwhile."""

    async def sent(name: str) -> AsyncIterator[bytes]:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as archive:
            archive.addfile(tarfile.TarInfo(name))
        yield made.getvalue()

    async def back(store: ImageStore, name: str) -> AsyncIterator[bytes]:
        request = pb.SaveImagesRequest(names=[name])
        async for one in ArchiveCalls(store, Loader(store)).save_images(request):
            yield one.data

    async with opened(tmp_path / "one") as store:
        base = await Loader(store).import_tree(sent("a"), settings=b'{"Env": ["A=1", "B=2"], "Cmd": ["sh"]}')
        wish = b'{"Env": ["A=9"], "Cmd": [], "Labels": {"k": "v"}, "User": "7"}'
        config = msgspec.structs.replace(
            documents.changed(base.config, wish),
            author="me",
            comment="why",
            created="2026-01-31T12:00:00+00:00",
        )
        assert (config.env, config.cmd, config.labels, config.user) == (("A=9", "B=2"), (), {"k": "v"}, "7")
        image = await Loader(store).add_layer(base.id, sent(".wh.a"), config, "localhost/more:1")
        assert image.layers[:-1] == base.layers and image.config == config
        assert not list((tmp_path / "one/uses").iterdir())
        await store.remove(base.id)
        archive = b"".join([piece async for piece in back(store, "localhost/more:1")])
        with pytest.raises(NotFound):
            await Loader(store).add_layer(base.id, sent("b"), config)

    async def whole() -> AsyncIterator[bytes]:
        yield archive

    async with opened(tmp_path / "two") as store:
        (loaded,) = await Loader(store).load(whole())
        assert loaded.config == config and loaded.repo_tags == ("localhost/more:1",)
    with pytest.raises(InvalidArgument, match="cannot be understood"):
        documents.changed(config, b'{"Env": "A=1"}')


async def test_a_name_that_is_given_leaves_the_image_that_had_it(tmp_path: Path) -> None:
    put(tmp_path, "a", "1", "x.y/a:1", pulled_at=2)
    put(tmp_path, "b", "2", "x.y/b:1", "x.y/c:1")
    async with opened(tmp_path) as store:
        assert (await store.tag(digest("b")[:20], "x.y/a:1")).repo_tags == ("x.y/a:1", "x.y/b:1", "x.y/c:1")
        found = store.status(digest("a"))
        assert found is not None and found.repo_tags == (), "it stays, by its id"
        assert (await store.tag("x.y/b:1", "short")).repo_tags[0] == "docker.io/library/short:latest"
        with pytest.raises(NotFound):
            await store.tag("x.y/none", "x.y/d:1")
        for wrong in ("UPPER", "x.y/z@" + digest("a"), ""):
            with pytest.raises(InvalidArgument):
                await store.tag("x.y/b:1", wrong)
            with pytest.raises(InvalidArgument):
                await store.untag(wrong)
    async with opened(tmp_path) as store:
        assert [len(image.repo_tags) for image in store.list()] == [4, 0], "it is on disk"


async def test_names_go_one_by_one_and_the_image_with_the_last(tmp_path: Path) -> None:
    put(tmp_path, "a", "1", "x.y/a:1", "x.y/b:1", "x.y/c:1")
    async with opened(tmp_path) as store:
        both = await asyncio.gather(*(store.untag(f"x.y/{one}:1", with_the_last=True) for one in "abc"))
        assert sorted(removed for _, removed in both) == [False, False, True], "each takes its own"
        assert store.list() == [] and layers(tmp_path) == ""
        with pytest.raises(NotFound, match=r"x\.y/a:1"):
            await store.untag("x.y/a:1")
    put(tmp_path, "b", "2", "x.y/b:1")
    async with opened(tmp_path) as store:
        image, removed = await store.untag("x.y/b:1")
        assert not removed and image.repo_tags == () and store.status(digest("b")) is not None
        assert layers(tmp_path) == "2"


async def test_a_name_is_given_while_its_image_is_removed(tmp_path: Path) -> None:
    put(tmp_path, "a", "1", "x.y/a:1")
    async with opened(tmp_path) as store:
        told = await asyncio.gather(
            store.remove("x.y/a:1"), store.tag("x.y/a:1", "x.y/b:1"), return_exceptions=True
        )
        assert isinstance(told[1], NotFound) and store.list() == []
    async with opened(tmp_path) as store:
        assert store.list() == [], "nothing was written after it was removed"


def archive_of(*names: str) -> bytes:
    """Images of an empty layer each, in the form of ``docker save``."""
    layer = bytes(10240)
    files, listed = {"layer.tar": layer}, []
    for number, name in enumerate(names):
        document = {
            "architecture": architecture.own().debian,
            "os": "linux",
            "config": {"User": str(number + 1)},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
        }
        files[f"{number}.json"] = json.dumps(document).encode()
        listed.append({"Config": f"{number}.json", "RepoTags": [name], "Layers": ["layer.tar"]})
    files["manifest.json"] = json.dumps(listed).encode()
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return made.getvalue()


async def sent(data: bytes) -> AsyncIterator[bytes]:
    yield data


@contextmanager
def full_after(records: int) -> Iterator[None]:
    """The disk has room for so many records of images more."""
    left = records
    really = os.open

    def opened(path: os.PathLike[str] | str, flags: int, *args: int, **others: int) -> int:
        nonlocal left
        if flags & os.O_CREAT and Path(path).parent.name == "images":
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device", os.fspath(path))
        return really(path, flags, *args, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opened)
        yield


@pytest.mark.parametrize("room", [0, 1, 2])
async def test_a_disk_that_fills_up_leaves_no_image_of_an_archive(room: int, tmp_path: Path) -> None:
    """Its images are two, and one of their names is that of an image that was here before."""
    put(tmp_path, "a", "1", "x.y/a:1", "x.y/old:1")
    before = sorted((tmp_path / "images").iterdir())
    async with opened(tmp_path) as store:
        archive = archive_of("x.y/new:1", "x.y/a:1")
        with full_after(room), pytest.raises(ResourceExhausted, match="No space left"):
            await Loader(store).load(sent(archive))
        (image,) = store.list()
        assert image.repo_tags == ("x.y/a:1", "x.y/old:1") and layers(tmp_path) == "1"
        assert sorted((tmp_path / "images").iterdir()) == before
        new, other = await Loader(store).load(sent(archive))
        assert (new.repo_tags, other.repo_tags) == (("x.y/new:1",), ("x.y/a:1",))
    async with opened(tmp_path) as store:
        assert [image.repo_tags for image in store.list()] == [("x.y/old:1",), ("x.y/new:1",), ("x.y/a:1",)]


async def test_a_disk_that_is_full_takes_no_name_away(tmp_path: Path) -> None:
    put(tmp_path, "a", "1", "x.y/a:1", "x.y/b:1")
    async with opened(tmp_path) as store:
        with full_after(0), pytest.raises(OSError, match="No space left"):
            await store.untag("x.y/a:1")
        assert store.status("x.y/a:1") is not None
        assert (await store.untag("x.y/a:1"))[0].repo_tags == ("x.y/b:1",)
