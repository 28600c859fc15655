"""Pulling from a real registry, and everything that can go wrong on the way."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orlop.cli.demo.imagewriter import LayerWriter, WrittenImage
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
from orlop.host import mounts, process
from orlop.images import layers, pull, skopeo
from orlop.images.erofsread import ErofsReader
from orlop.images.model import PullProgress, RegistryAuth
from orlop.images.store import ImageStore
from tests.patience import PATIENCE
from tests.registry import PASSWORD, USER, Registry, wire

SETTINGS = {"Env": ["A=b"], "Cmd": ["sh"], "User": "1000"}


def layer(name: str, size: int = 1000, compress: str = "gzip"):  # type: ignore[no-untyped-def]
    writer = LayerWriter()
    writer.file(f"etc/{name}", random.Random(name).randbytes(size))
    return writer.finish(compress)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        base, top = layer("base"), layer("top", 5000)
        foreign = WrittenImage((base,), {}, architecture="riscv64")
        registry.push("app", ["1", "same"], WrittenImage((base, top), SETTINGS))
        registry.push("zstd", ["1"], WrittenImage((layer("base", compress="zstd"), top), SETTINGS))
        registry.push("foreign", ["1"], foreign)
        registry.push("multi", ["1"], foreign, WrittenImage((base,), SETTINGS))
        yield registry


@asynccontextmanager
async def opened(root: Path, conf: str, **settings: object) -> AsyncIterator[ImageStore]:
    store = ImageStore(root, ImageConfig(registries_conf=conf, **settings))  # type: ignore[arg-type]
    await store.open()
    try:
        yield store
    finally:
        await store.close()
        assert list((root / "ingest").iterdir()) == [], "something half-made is left"


async def test_by_tag_and_by_digest(served: Registry, tmp_path: Path) -> None:
    async with opened(tmp_path, served.conf) as store:
        image = await store.pull(f"{served.address}/app:1")
        assert image.repo_tags == (f"{served.address}/app:1",)
        assert image.config.env == ("A=b",)
        assert image.config.user == "1000"
        assert len(image.layers) == 2
        assert image.size == sum(Path(path).stat().st_size for path in image.layers)
        (digest,) = image.repo_digests
        assert digest.startswith(f"{served.address}/app@sha256:")
        by_digest = await store.pull(digest)
        assert by_digest == image
        assert store.status(digest) == image
        assert store.status(image.id) == image
        assert store.status(image.id[7:19]) == image
        assert store.status(f"{served.address}/app") is None
        assert store.list() == [image]
        with ErofsReader(Path(image.layers[1])) as reader:
            found = reader.lookup(b"etc/top")
            assert found is not None
            assert found.size == 5000
        both = await store.pull(f"{served.address}/app:same")
        assert both.repo_tags == (f"{served.address}/app:1", f"{served.address}/app:same")


async def test_two_names_of_one_image_pulled_at_once_are_both_kept(served: Registry, tmp_path: Path) -> None:
    names = [f"{served.address}/app:{tag}" for tag in ("1", "same")]
    for round_ in range(20):
        root = tmp_path / str(round_)
        async with opened(root, served.conf) as store:
            await asyncio.gather(*map(store.pull, names))
            assert [image.repo_tags for image in store.list()] == [tuple(names)]
        async with opened(root, served.conf) as store:
            assert [image.repo_tags for image in store.list()] == [tuple(names)]


async def test_a_removed_image_stays_away(served: Registry, tmp_path: Path) -> None:
    """However shortly after its pull: its record is written once more when its layers are on disk."""
    name = f"{served.address}/app:1"
    moment = random.Random(5)
    async with opened(tmp_path, served.conf) as store:
        for _ in range(25):
            await store.pull(name)
            await asyncio.sleep(moment.uniform(0, 0.004))
            await store.remove(name)
            assert store.list() == []
            await store.close()
            assert list((tmp_path / "images").iterdir()) == []


async def test_an_index_and_zstd_share_layers(served: Registry, tmp_path: Path) -> None:
    async with opened(tmp_path, served.conf) as store:
        app = await store.pull(f"{served.address}/app:1")
        seen: list[PullProgress] = []
        zstd = await store.pull(f"{served.address}/zstd:1", progress=seen.append)
        assert zstd.layers == app.layers
        assert (seen[-1].layers, seen[-1].layers_done) == (2, 2)
        assert seen[-1].read_bytes == seen[-1].total_bytes > 0
        multi = await store.pull(f"{served.address}/multi:1")
        assert multi.layers == app.layers[:1]
        usage = await store.fs_info()
        assert usage.inodes == 2
        assert usage.used_bytes >= sum(Path(path).stat().st_size for path in app.layers)


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [
        ("nowhere:1", NotFound, "nowhere:1"),
        ("app:nope", NotFound, "app:nope"),
        (f"app@sha256:{'0' * 64}", NotFound, "000"),
        ("foreign:1", FailedPrecondition, "linux/riscv64, this machine is linux/amd64"),
    ],
)
async def test_what_cannot_be_pulled(
    name: str, error: type[OrlopError], why: str, served: Registry, tmp_path: Path
) -> None:
    async with opened(tmp_path, served.conf) as store:
        with pytest.raises(error, match=why):
            await store.pull(f"{served.address}/{name}")
        assert store.list() == []
        assert list((tmp_path / "layers").iterdir()) == []


async def test_a_registry_that_is_not_there(served: Registry, tmp_path: Path) -> None:
    async with opened(tmp_path, served.allow("127.0.0.1:1")) as store:
        with pytest.raises(Unavailable, match="RegistryUnavailable"):
            await store.pull("127.0.0.1:1/x")
    async with opened(tmp_path, served.allow()) as store:
        with pytest.raises(FailedPrecondition, match="insecure"):
            await store.pull(f"{served.address}/app:1")


async def test_a_mirror(served: Registry, tmp_path: Path) -> None:
    conf = served.allow(mirror=("registry.example", served.address))
    async with opened(tmp_path, conf) as store:
        image = await store.pull("registry.example/app:1")
        assert image.repo_tags == ("registry.example/app:1",)


async def test_credentials(served: Registry, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry", auth=True, storage=served.storage) as guarded:
        name = f"{guarded.address}/app:1"
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        async with opened(tmp_path / "a", guarded.conf) as store:
            for wrong in (None, RegistryAuth(username=USER, password="wrong")):
                with pytest.raises((Unauthenticated, PermissionDenied), match=name):
                    await store.pull(name, wrong)
            await store.pull(name, RegistryAuth(username=USER, password=PASSWORD))
            await store.remove(name)
            await store.pull(name, RegistryAuth(auth=pair))
            await store.remove(name)
        auth_file = tmp_path / "auth.json"
        auth_file.write_text(json.dumps({"auths": {guarded.address: {"auth": pair}}}))
        async with opened(tmp_path / "a", guarded.conf, auth_file=os.fspath(auth_file)) as store:
            await store.pull(name)


async def test_damaged_blobs_are_refused(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        one = layer("one", 100_000)
        image = WrittenImage((one,), SETTINGS)
        registry.push("app", ["1"], image)
        file = registry.blob_file(one.blob.digest)
        good = file.read_bytes()
        async with opened(tmp_path / "a", registry.conf) as store:
            for offset in (50_000, len(good) - 20):
                file.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
                with pytest.raises(DataLoss, match=one.blob.digest):
                    await store.pull(f"{registry.address}/app:1")
            config = registry.blob_file(image.config().digest)
            file.write_bytes(good)
            config.write_bytes(config.read_bytes().replace(b"A=b", b"A=c"))
            with pytest.raises(DataLoss, match="digest"):
                await store.pull(f"{registry.address}/app:1")
            assert store.list() == []


async def test_a_layer_whose_content_is_not_what_the_configuration_says(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        one, other = layer("one"), layer("other")
        lying = type(one)(one.blob, other.diff_id)
        registry.push("app", ["1"], WrittenImage((lying,), SETTINGS))
        async with opened(tmp_path / "a", registry.conf) as store:
            with pytest.raises(DataLoss, match="content"):
                await store.pull(f"{registry.address}/app:1")
            assert list((tmp_path / "a/layers").iterdir()) == []


async def test_a_pull_that_is_cut_goes_on(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        layers = tuple(layer(f"l{number}", 3_000_000) for number in range(3))
        registry.push("app", ["1"], WrittenImage(layers, SETTINGS))
        async with (
            wire(registry.address) as line,
            opened(tmp_path / "a", registry.allow(line.address)) as store,
        ):
            line.cut_after = 7_000_000
            image = await store.pull(f"{line.address}/app:1")
            assert line.cut_after is None, "it was cut"
            assert len(image.layers) == 3
            assert line.received < 17_000_000


async def test_a_cancelled_pull_leaves_nothing(served: Registry, tmp_path: Path) -> None:
    async with wire(served.address) as line, opened(tmp_path, served.allow(line.address)) as store:
        for seconds in (0.001, 0.03, 0.1):
            line.hold_after = 0 if seconds < 0.1 else 2500
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds):
                    await store.pull(f"{line.address}/app:1")
            assert list((tmp_path / "ingest").iterdir()) == []
        line.hold_after = None
        await store.pull(f"{line.address}/app:1")


@pytest.mark.parametrize("answers", [0, 600, 1300, 2600])
async def test_a_registry_that_falls_silent(
    answers: int, served: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skopeo, "ANSWER_TIMEOUT", 0.4)
    monkeypatch.setattr(pull, "ATTEMPTS", 1)
    monkeypatch.setattr(layers, "ASK_AFTER", 0.2)
    monkeypatch.setattr(layers, "STALL", 0.4)
    async with wire(served.address) as line, opened(tmp_path, served.allow(line.address)) as store:
        line.hold_after = answers
        with pytest.raises(Unavailable, match=f"RegistryUnavailable: image {line.address}/multi"):
            await store.pull(f"{line.address}/multi:1")


async def test_pulls_of_the_same_name_join(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        registry.push("app", ["1"], WrittenImage((layer("big", 4_000_000),), SETTINGS))
        registry.push("other", ["1"], WrittenImage((layer("big", 4_000_000), layer("more")), SETTINGS))
        async with (
            wire(registry.address) as line,
            opened(tmp_path / "a", registry.allow(line.address)) as store,
        ):
            name = f"{line.address}/app:1"
            hurried = asyncio.create_task(store.pull(name))
            await asyncio.sleep(0)
            other = asyncio.create_task(store.pull(f"{line.address}/other:1"))
            rest = [asyncio.create_task(store.pull(name)) for _ in range(3)]
            await asyncio.sleep(0.05)
            hurried.cancel()
            images = await asyncio.gather(*rest, other)
            assert len({image.id for image in images}) == 2
            assert line.received < 5_500_000, "the big layer came once"


async def test_names_move_and_layers_go(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        base, old, new = layer("base"), layer("old"), layer("new")
        name = f"{registry.address}/app:1"
        registry.push("app", ["1"], WrittenImage((base, old), SETTINGS))
        async with opened(tmp_path / "a", registry.conf, pinned=("*/app:1",)) as store:
            first = await store.pull(name)
            assert first.pinned
            registry.push("app", ["1"], WrittenImage((base, new), SETTINGS))
            second = await store.pull(name)
            assert second.id != first.id
            left = store.status(first.id)
            assert left is not None
            assert (left.repo_tags, left.pinned) == ((), False)
            assert store.status(name) == second
        async with opened(tmp_path / "a", registry.conf) as store:
            assert len(store.list()) == 2, "images survive a restart"
            await store.use(first.id, "container-1")
            await store.remove(first.id)
            await store.remove(first.id)
            assert store.status(first.id) is None
            assert all(Path(path).exists() for path in first.layers), "in use"
        async with opened(tmp_path / "a", registry.conf) as store:
            assert all(Path(path).exists() for path in first.layers), "still in use"
            await store.reconcile([])
            assert [Path(path).exists() for path in first.layers] == [True, False]
            await store.remove(name)
            assert list((tmp_path / "a/layers").iterdir()) == []


async def test_pulls_and_removals_at_once(served: Registry, tmp_path: Path) -> None:
    async with opened(tmp_path, served.conf) as store:
        names = [f"{served.address}/{name}" for name in ("app:1", "app:same", "multi:1", "zstd:1")]

        async def pulls(name: str) -> None:
            for _ in range(5):
                await store.pull(name)

        async def removals() -> None:
            for number in range(40):
                await store.remove(names[number % 4])
                for image in store.list():
                    assert all(Path(path).exists() for path in image.layers), "a listed image is whole"
                await asyncio.sleep(0.02)

        await asyncio.gather(*map(pulls, names), removals())
        for image in store.list():
            assert all(Path(path).exists() for path in image.layers)
            await store.remove(image.id)
        assert list((tmp_path / "layers").iterdir()) == []


async def test_a_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounts.mount("tmpfs", small, "tmpfs", options="size=2m")
    try:
        with Registry(tmp_path / "registry") as registry:
            registry.push("app", ["1"], WrittenImage((layer("big", 4_000_000),), SETTINGS))
            async with opened(small / "a", registry.conf) as store:
                with pytest.raises(ResourceExhausted, match=r"app:1.*space"):
                    await store.pull(f"{registry.address}/app:1")
                assert list((small / "a/layers").iterdir()) == []
    finally:
        mounts.unmount(small)


async def test_a_layer_that_is_too_large(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        writer = LayerWriter()
        writer.file("zeros", bytes(3 << 20))
        registry.push("app", ["1"], WrittenImage((writer.finish(),), SETTINGS))
        async with opened(tmp_path / "a", registry.conf, max_layer_mib=2) as store:
            with pytest.raises(ResourceExhausted, match="2 MiB"):
                await store.pull(f"{registry.address}/app:1")


async def test_a_policy_is_never_ignored(served: Registry, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    accepted = {"docker": {f"{served.address}/app": [{"type": "insecureAcceptAnything"}]}}
    policy.write_text(json.dumps({"default": [{"type": "reject"}], "transports": accepted}))
    async with opened(tmp_path / "a", served.conf, policy=os.fspath(policy)) as store:
        with pytest.raises(PermissionDenied, match=r"^SignatureValidationFailed: .*polic"):
            await store.pull(f"{served.address}/zstd:1")
        assert store.list() == []
        image = await store.pull(f"{served.address}/app:1")
        assert len(image.layers) == 2
        await store.remove(image.id)
    async with opened(tmp_path / "a", served.conf, policy="/nowhere") as store:
        with pytest.raises(InvalidArgument, match="/nowhere"):
            await store.pull(f"{served.address}/app:1")


async def test_the_older_manifests_of_docker(served: Registry, tmp_path: Path) -> None:
    address = served.address
    copy = ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"]
    await process.run([*copy, "--format", "v2s2", f"docker://{address}/app:1", f"docker://{address}/old:1"])
    async with opened(tmp_path, served.conf) as store:
        new, old = await store.pull(f"{address}/app:1"), await store.pull(f"{address}/old:1")
        assert new.id == old.id, "the same configuration, whatever kind of manifest names it"
        assert len(old.repo_digests) == 2
        # One name takes all names of the image with it, in every repository.
        await store.remove(f"{address}/app:1")
        assert store.list() == []


KILLED = """
import asyncio, sys
from pathlib import Path
from orlop.config import ImageConfig
from orlop.images.store import ImageStore

async def main():
    store = ImageStore(Path(sys.argv[1]), ImageConfig(registries_conf=sys.argv[2]))
    await store.open()
    await store.pull(sys.argv[3])

asyncio.run(main())
"""


async def test_a_daemon_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        registry.push("app", ["1"], WrittenImage((layer("small"), layer("big", 4_000_000)), SETTINGS))
        async with wire(registry.address) as line:
            conf = registry.allow(line.address)
            name = f"{line.address}/app:1"
            line.hold_after = 2_000_000
            root = tmp_path / "a"
            child = await process.spawn(
                [sys.executable, "-c", KILLED, root, conf, name], env=dict(os.environ)
            )
            descendants = []
            async with asyncio.timeout(60 * PATIENCE):
                # Itself, skopeo and a conversion.
                while line.received < line.hold_after or len(descendants) < 3:
                    await asyncio.sleep(0.05)
                    descendants = [child.pid, *children_of(child.pid)]
            started = {pid: process.process_start_time(pid) for pid in descendants}
            assert list((root / "ingest").iterdir())
            child.kill()
            await child.wait()
            async with asyncio.timeout(60 * PATIENCE):
                while any(process.pid_alive(*one) for one in started.items()):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            line.hold_after = None
            async with opened(root, conf) as store:
                assert list((root / "ingest").iterdir()) == []
                assert store.list() == []
                line.received = 0
                image = await store.pull(name)
                assert len(image.layers) == 2
                assert line.received < 4_100_000


def children_of(pid: int) -> list[int]:
    """The processes below ``pid``, which may end while they are looked for."""
    try:
        found = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return found + [inner for one in found for inner in children_of(one)]
