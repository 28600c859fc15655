"""Pulling an image until a container could start from it: ``python -m bench.pull --help``.

Orlop's image store (pull and conversion to EROFS) beside ``skopeo copy`` + ``umoci unpack`` and, where it
is installed, ``podman pull``, on the same images from the same registry on loopback, taking turns. Every
pull starts with an empty store. Prints a table and, with ``--json FILE``, a document. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import io
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.registry import Registry

from orlop.cli.demo.imagewriter import LAYER_GZIP, LayerContent, WrittenBlob, WrittenImage
from orlop.config import ImageConfig
from orlop.images.store import ImageStore

WORDS = [bytes(random.Random(n).choices(range(97, 123), k=3 + n % 9)) for n in range(2000)]


def text(rng: random.Random, size: int) -> bytes:
    """Bytes that compress about as well as programs and texts do, to some 40 %."""
    parts, length = [], 0
    while length < size:
        part = b" ".join(rng.choices(WORDS, k=60)) + rng.randbytes(40)
        parts.append(part)
        length += len(part)
    return b"".join(parts)[:size]


def make_layer(seed: int, files: int, size: int) -> tuple[LayerContent, int]:
    """A layer of ``files`` files of about ``size`` bytes, and how long it is unpacked."""
    rng = random.Random(seed)
    block = text(rng, 4 << 20)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(files):
            info = tarfile.TarInfo(f"usr/{seed}/{number % 97}/file-{number}")
            info.size = int(size * (0.2 + 1.6 * rng.random()))
            info.mtime = 1_700_000_000
            start = rng.randrange(len(block))
            body = (block[start:] + block * (1 + info.size // len(block)))[: info.size]
            archive.addfile(info, io.BytesIO(body))
    raw = buffer.getvalue()
    packer = zlib.compressobj(6, wbits=31)
    packed = packer.compress(raw) + packer.flush()
    return LayerContent(WrittenBlob(LAYER_GZIP, packed), "sha256:" + hashlib.sha256(raw).hexdigest()), len(
        raw
    )


# name: layers of (files, mean size)
SHAPES: dict[str, list[tuple[int, int]]] = {
    "small files": [(20_000, 4_000)],
    "large files": [(60, 4_000_000)],
    "five layers": [(3_000, 16_000)] * 5,
}


def orlop(name: str, conf: str, scratch: Path) -> None:
    async def pull() -> None:
        store = ImageStore(scratch / "orlop", ImageConfig(registries_conf=conf))
        await store.open()
        try:
            await store.pull(name)
        finally:
            await store.close()

    asyncio.run(pull())


def umoci(name: str, conf: str, scratch: Path) -> None:
    oci = f"{scratch}/oci:1"
    command = ["skopeo", "--insecure-policy", "--registries-conf", conf, "copy", "-q"]
    subprocess.run([*command, f"docker://{name}", f"oci:{oci}"], check=True)
    subprocess.run(["umoci", "unpack", "--image", oci, scratch / "bundle"], check=True)


def podman(name: str, conf: str, scratch: Path) -> None:
    command = ["podman", "--root", f"{scratch}/podman", "--runroot", f"{scratch}/run", "pull", "-q"]
    env = {**os.environ, "CONTAINERS_REGISTRIES_CONF": conf}
    subprocess.run([*command, name], check=True, stdout=subprocess.DEVNULL, env=env)


SYSTEMS: dict[str, tuple[str, Callable[[str, str, Path], None]]] = {
    "orlop": ("skopeo", orlop),
    "skopeo+umoci": ("umoci", umoci),
    "podman": ("podman", podman),
}


def measure(pull: Callable[[str, str, Path], None], name: str, conf: str) -> tuple[float, float]:
    """Seconds, and processor seconds of all children, for one pull into an empty store."""
    with tempfile.TemporaryDirectory(prefix="orlop-bench-") as scratch:
        os.sync()
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = time.process_time()
        begin = time.perf_counter()
        pull(name, conf, Path(scratch))
        seconds = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return seconds, used + time.process_time() - own


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(prog="python -m bench.pull", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shape", choices=SHAPES, action="append")
    options = parser.parse_args()
    systems = {name: pull for name, (tool, pull) in SYSTEMS.items() if shutil.which(tool)}
    document: dict[str, Any] = {"rounds": options.rounds, "images": {}}
    with (
        tempfile.TemporaryDirectory(prefix="orlop-bench-registry-") as place,
        Registry(Path(place)) as registry,
    ):
        for shape in options.shape or SHAPES:
            layers = [make_layer(n, files, size) for n, (files, size) in enumerate(SHAPES[shape])]
            repository = shape.replace(" ", "-")
            registry.push(repository, ["1"], WrittenImage(tuple(layer for layer, _ in layers), {}))
            files = sum(count for count, _ in SHAPES[shape])
            megabytes = sum(size for _, size in layers) / 1e6
            packed = sum(len(layer.blob.data) for layer, _ in layers) / 1e6
            del layers
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
            for _ in range(options.rounds):
                for name, pull in systems.items():
                    found[name].append(measure(pull, f"{registry.address}/{repository}:1", registry.conf))
            document["images"][shape] = {
                "files": files,
                "megabytes": round(megabytes, 1),
                "compressed_megabytes": round(packed, 1),
                "systems": {name: summary(samples, files, megabytes) for name, samples in found.items()},
            }
            show(shape, document["images"][shape])
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def summary(
    samples: list[tuple[float, float]], files: int, megabytes: float
) -> dict[str, float | list[float]]:
    """Medians of what was measured."""
    seconds = statistics.median(sample[0] for sample in samples)
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(statistics.median(sample[1] for sample in samples), 3),
        "megabytes_per_second": round(megabytes / seconds, 1),
        "files_per_second": round(files / seconds),
        "all_seconds": [round(sample[0], 3) for sample in samples],
    }


def show(shape: str, image: dict[str, Any]) -> None:
    """One image's table."""
    print(
        f"\n{shape}: {image['files']} files, {image['megabytes']} MB unpacked, "
        f"{image['compressed_megabytes']} MB compressed"
    )
    print(f"  {'':14}{'seconds':>9}{'CPU s':>9}{'MB/s':>9}{'files/s':>10}")
    for name, found in image["systems"].items():
        print(
            f"  {name:14}{found['seconds']:9.2f}{found['cpu_seconds']:9.2f}"
            f"{found['megabytes_per_second']:9.0f}{found['files_per_second']:10.0f}"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
