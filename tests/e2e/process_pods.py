"""Pods of the handler ``process`` for the tests: an image, a network, a driver of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from orlop.config import Config, NetworkConfig
from orlop.host import process
from orlop.net import conflist
from orlop.net.network import PodNetwork
from orlop.pods import capabilities
from orlop.sandbox.base import ProcessIO, Sandbox
from orlop.sandbox.process.driver import ProcessDriver
from orlop.sandbox.spec import ContainerSpec, ExecSpec, ExitStatus, PodSpec, Root, Security, Sink
from tests.conformance.tools import busybox
from tests.patience import PATIENCE

NUMBER = os.getpid() % 250  # runs at the same time must not share a bridge
BRIDGE = f"orlopprc{NUMBER}"
SUBNET = f"10.216.{NUMBER}.0/24"
MASKED = ("/proc/kcore", "/proc/keys", "/sys/firmware")
READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger")


def make_layer(directory: Path) -> Path:
    """An EROFS image with busybox and a user database."""
    root = directory / "tree"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "var", "data"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    program = root / "bin" / "busybox"
    program.write_bytes(busybox().read_bytes())
    program.chmod(0o755)
    names = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        with contextlib.suppress(FileExistsError):
            (root / "bin" / name).hardlink_to(program)
    (root / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/srv:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\nweb:x:1001:\nextra:x:50000:web\n")
    image = directory / "layer.erofs"
    subprocess.run(["mkfs.erofs", "--quiet", image, root], check=True, capture_output=True)
    return image


@dataclass
class Bed:
    """A driver and what it was made with."""

    config: Config
    network: PodNetwork
    driver: ProcessDriver
    layer: Path
    logs: Path

    def pod(self, **changes: Any) -> PodSpec:
        """A pod to ask for."""
        pod_id = secrets.token_hex(32)
        base = PodSpec(
            id=pod_id, name="web", namespace="test", uid=pod_id[:8], hostname="web", handler="process"
        )
        return msgspec.structs.replace(base, **changes)

    def container(self, pod: PodSpec, *args: str, **changes: Any) -> ContainerSpec:
        """A container that runs a command."""
        container_id = secrets.token_hex(32)
        base = ContainerSpec(
            id=container_id,
            pod_id=pod.id,
            name="main",
            root=Root(layers=(str(self.layer),)),
            args=args or ("sleep", "1000"),
            env=(("PATH", b"/bin"),),
            sink=Sink(log=str(self.logs / container_id[:12] / "0.log")),
            security=secure(),
            namespaces=pod.namespaces,
        )
        return msgspec.structs.replace(base, **changes)


def crun_anywhere(directory: Path) -> str:
    """crun as a command that works on hosts with both versions of control groups, too."""
    if not Path("/sys/fs/cgroup/unified").exists():
        return "crun"
    script = directory / "crun-alone"
    inner = 'mount --make-rprivate /sys/fs/cgroup && umount /sys/fs/cgroup/unified; exec crun "$@"'
    script.write_text(
        f"#!/bin/sh\nexec unshare --mount --propagation unchanged sh -c '{inner}' crun \"$@\"\n"
    )
    script.chmod(0o755)
    return str(script)


def secure(**changes: Any) -> Security:
    """The usual security of a container."""
    base = Security(
        capabilities=capabilities.effective((), (), privileged=False),
        masked_paths=MASKED,
        read_only_paths=READ_ONLY,
    )
    return msgspec.structs.replace(base, **changes)


@contextlib.asynccontextmanager
async def bed(directory: Path, layer: Path, **changes: Any) -> AsyncIterator[Bed]:
    """A driver that is open; at the end nothing of it is left, or the test fails."""
    conf = directory / "net.d"
    conf.mkdir(exist_ok=True)
    document = json.loads(conflist.default_conflist([SUBNET], name="orlopprc", bridge=BRIDGE))
    document["plugins"][0]["ipam"]["dataDir"] = str(directory / "leases")
    del document["orlop.masquerade"]
    (conf / "10.conflist").write_text(json.dumps(document))
    config = Config(
        root=str(directory / "root"),
        state=str(directory / "state"),
        network=NetworkConfig(conf_dir=str(conf), timeout=20 * PATIENCE),
        **changes,
    )
    network = PodNetwork(config.network, directory / "attached")
    driver = ProcessDriver(config, network)
    await driver.open()
    assert await driver.ready() == ""
    try:
        yield Bed(config, network, driver, layer, directory / "logs")
    finally:
        for pod_id in await driver.traces():
            await driver.discard(pod_id)
        await driver.close()
        await process.run(["ip", "link", "delete", BRIDGE], check=False)
    mounted = await asyncio.to_thread(Path("/proc/self/mountinfo").read_text)
    assert str(directory) not in mounted


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for something that sets no event."""
    async with asyncio.timeout(60 * PATIENCE):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)


async def read(stream: ProcessIO) -> tuple[bytes, bytes, ExitStatus]:
    """All output of a process, and its exit."""
    found = {1: b"", 2: b""}
    async for number, data in stream.output():
        found[number] += data
    status = await stream.wait()
    await stream.close()
    return found[1], found[2], status


async def run(sandbox: Sandbox, container_id: str, *args: str) -> tuple[bytes, bytes, int]:
    """ExecSync."""
    stdout, stderr, status = await read(await sandbox.exec(container_id, ExecSpec(args=args)))
    return stdout, stderr, status.code
