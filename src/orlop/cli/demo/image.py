"""The image of ``orlop demo``: the machine's static busybox with a small web page."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orlop.cli.demo.imagewriter import LayerContent, LayerWriter, Pusher, WrittenImage
from orlop.cli.problems import CliError
from orlop.host import process

PORT = 8080
PLACES = ("/bin/busybox", "/usr/bin/busybox")

SCRIPT = f"""#!/bin/sh
echo "Hello from $WHO, pod $(hostname)"
echo "kernel $(uname -sr), $(nproc) CPU, $(awk '/MemTotal/ {{print int($2 / 1024)}}' /proc/meminfo) MiB"
echo ready
exec httpd -f -p {PORT} -h /www
"""


async def static_busybox() -> Path:
    """A busybox that needs no libraries. Raises CliError when the machine has none."""
    for place in map(Path, PLACES):
        if place.exists() and not await asyncio.to_thread(_has_interpreter, place):
            return place
    raise CliError("the demo makes its image from a static busybox: apt-get install busybox-static")


def _has_interpreter(path: Path) -> bool:
    """Whether an ELF file asks for a dynamic loader (a PT_INTERP program header)."""
    head = path.read_bytes()[:4096]
    if head[:5] != b"\x7fELF\x02":
        return True
    start = int.from_bytes(head[32:40], "little")
    size, count = int.from_bytes(head[54:56], "little"), int.from_bytes(head[56:58], "little")
    headers = (head[start + number * size : start + number * size + 4] for number in range(count))
    return any(int.from_bytes(one, "little") == 3 for one in headers)


async def _applets(busybox: Path) -> list[str]:
    done = await process.run([busybox, "--list"])
    return done.stdout.decode().split()


def _layers(busybox: Path, applets: list[str]) -> tuple[LayerContent, LayerContent]:
    base = LayerWriter()
    for path in ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "www"):
        base.directory(path, 0o1777 if path == "tmp" else 0o755)
    base.file("bin/busybox", busybox.read_bytes(), 0o755)
    for name in applets:
        if name != "busybox":
            base.symbolic_link(f"bin/{name}", "busybox")
    base.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    base.file("etc/group", "root:x:0:\n")
    top = LayerWriter()
    top.file("hello", SCRIPT, 0o755)
    top.file("www/index.html", "A page from inside the pod.\n")
    return base.finish(), top.finish()


async def push_demo_image(registry: str, reference: str) -> None:
    """Make the image and push it to ``registry``, below a path that begins with the reference's host."""
    busybox = await static_busybox()
    layers = await asyncio.to_thread(_layers, busybox, await _applets(busybox))
    image = WrittenImage(layers, {"Env": ["PATH=/bin"], "Entrypoint": ["/hello"], "WorkingDir": "/"})
    repository, _, tag = reference.rpartition(":")
    await asyncio.to_thread(lambda: Pusher(registry).push(repository, [tag], image))
