"""Images and registries that want the node to themselves: others go on pulling."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orlop.cli.demo.imagewriter import LayerWriter, WrittenImage
from orlop.config import ImageConfig
from orlop.errors import Unavailable
from orlop.images import layers, places, pull
from orlop.images.store import ImageStore
from tests.patience import PATIENCE
from tests.registry import Registry, Wire

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SETTINGS = {"Cmd": ["/bin/sh"]}
DIRECTORIES = 20_000


@asynccontextmanager
async def store_at(root: Path, conf: str, **settings: object) -> AsyncIterator[ImageStore]:
    store = ImageStore(root, ImageConfig(registries_conf=conf, **settings))  # type: ignore[arg-type]
    await store.open()
    try:
        yield store
    finally:
        await store.close()
        assert list((root / "ingest").iterdir()) == []


@asynccontextmanager
async def wire_to(registry: Registry) -> AsyncIterator[Wire]:
    line = Wire(registry.address)
    server = await asyncio.start_server(line.serve, "127.0.0.1")
    line.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        server.close()


def implied(count: int) -> WrittenImage:
    """A small image whose upper layer implies many directories that the lower one describes."""
    lower, upper = LayerWriter(), LayerWriter()
    for number in range(count):
        lower.directory(f"d{number}", 0o700)
        upper.file(f"d{number}/x", b"")
    return WrittenImage((lower.finish("gzip"), upper.finish("gzip")), SETTINGS)


async def test_an_image_of_implied_directories_takes_no_longer_than_its_size(tmp_path: Path) -> None:
    """400 KB that took minutes in a thread that nothing could end."""
    with Registry(tmp_path / "registry") as registry:
        registry.push("bomb", ["1"], implied(DIRECTORIES))
        async with store_at(tmp_path / "a", registry.conf) as store:
            begun = time.monotonic()
            image = await store.pull(f"{registry.address}/bomb:1")
            assert len(image.layers) == 3
            assert time.monotonic() - begun < 30 * PATIENCE


async def test_a_pull_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        registry.push("bomb", ["1"], implied(DIRECTORIES))
        async with store_at(tmp_path / "a", registry.conf) as store:
            for seconds in (0.5, 1.5, 2.5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await store.pull(f"{registry.address}/bomb:1")
                        raise TimeoutError
                assert list((tmp_path / "a/ingest").iterdir()) == []


async def test_a_registry_that_drips_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PATIENCE", 1.0)
    monkeypatch.setattr(layers, "PACE_WINDOW", 12.0)
    monkeypatch.setattr(pull, "ATTEMPTS", 1)
    large, small = LayerWriter(), LayerWriter()
    large.file("large", os.urandom(1 << 20))
    small.file("small", b"x")
    with Registry(tmp_path / "registry") as registry:
        registry.push("large", ["1"], WrittenImage((large.finish("gzip"),), SETTINGS))
        registry.push("small", ["1"], WrittenImage((small.finish("gzip"),), SETTINGS))
        async with wire_to(registry) as line:
            conf = registry.allow(registry.address, line.address)
            async with store_at(tmp_path / "a", conf, max_parallel_pulls=1) as store:
                line.drip_after = 100_000
                slow = asyncio.ensure_future(store.pull(f"{line.address}/large:1"))
                async with asyncio.timeout(60 * PATIENCE):
                    while line.received <= line.drip_after:  # noqa: ASYNC110 - nothing tells of it
                        await asyncio.sleep(0.05)
                await store.pull(f"{registry.address}/small:1")
                assert not slow.done(), "it was waited for"
                with pytest.raises(Unavailable, match=r"only .* bytes of layer .* came in 12 seconds"):
                    await slow
