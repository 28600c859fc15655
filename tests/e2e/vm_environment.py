"""A ``vm`` driver of one's own for tests: real QEMU, real guest, a bridge network, an image of busybox."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from orlop.config import Config, NetworkConfig, PoolConfig
from orlop.guestos.build import GuestArtifacts, build
from orlop.host import mounts, process
from orlop.hypervisor.base import GuestFiles, Hypervisor
from orlop.hypervisor.qemu import backend
from orlop.net import conflist
from orlop.net.network import PodNetwork
from orlop.sandbox.base import ProcessIO
from orlop.sandbox.spec import ContainerSpec, ExecSpec, PodSpec, Root, Sink
from orlop.sandbox.vm.driver import Source, VmDriver
from orlop.sandbox.vm.pool import Pool
from orlop.sandbox.vm.sandbox import VmSandbox
from orlop.sandbox.vm.states import Ready
from tests.conformance import tools
from tests.patience import PATIENCE, vm_config

NUMBER = os.getpid() % 250  # runs at the same time must not share a bridge
BRIDGE = f"orlvmtest{NUMBER}"
ACCELERATOR = os.environ.get("ORLOP_TEST_ACCELERATOR", "auto")
SUBNET = f"10.214.{NUMBER}.0/24"
CACHE = Path(os.environ.get("ORLOP_TEST_CACHE", Path.home() / ".cache/orlop"))


@cache
def busybox_layer() -> str:
    """An EROFS layer with a busybox, its applets, and a few files."""
    return os.fspath(tools.cached(CACHE / "test-layers/busybox.erofs", _busybox_layer))


def _busybox_layer(scratch: Path) -> Path:
    root, made = scratch / "root", scratch / "busybox.erofs"
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy(tools.busybox(), root / "bin/busybox")
    links = tools.busybox().with_name("busybox.links").read_text().split()
    for link in links:
        with suppress(FileExistsError):
            os.link(root / "bin/busybox", root / "bin" / Path(link).name)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nweb:x:1000:\nextra:x:2000:web\n")
    (root / "tmp").chmod(0o1777)
    subprocess.run(["mkfs.erofs", "-T0", made, root], check=True, capture_output=True)
    return made


def pod_spec(**changes: Any) -> PodSpec:
    """A pod."""
    values: dict[str, Any] = {
        "id": secrets.token_hex(32),
        "name": f"pod-{secrets.token_hex(3)}",
        "namespace": "test",
        "uid": secrets.token_hex(8),
    }
    return PodSpec(**(values | changes))


def container_spec(pod: PodSpec, *args: str, log_path: str = "", **changes: Any) -> ContainerSpec:
    """A container with busybox as its image."""
    values: dict[str, Any] = {
        "id": secrets.token_hex(32),
        "pod_id": pod.id,
        "name": f"c-{secrets.token_hex(3)}",
        "image_id": "sha256:busybox",
        "root": Root(layers=(busybox_layer(),)),
        "sink": Sink(log=log_path),
        "args": args,
        "env": (("PATH", b"/bin:/sbin"), ("HOME", b"/root")),
    }
    return ContainerSpec(**(values | changes))


@dataclass
class Environment:
    """Where a driver keeps its things, and the driver."""

    scratch: Path
    config: Config
    hypervisor: Hypervisor
    network: PodNetwork
    driver: VmDriver
    sandboxes: list[VmSandbox] = field(default_factory=list)

    async def run(self, spec: PodSpec) -> VmSandbox:
        """Run a pod."""
        sandbox = await self.driver.run(spec)
        self.sandboxes.append(sandbox)
        return sandbox

    def log_of(self, spec: ContainerSpec) -> list[str]:
        """The log's lines without their times. The last one may not be whole yet, and is left out then."""
        path = Path(spec.sink.log)
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [line.split(" ", 1)[1].removesuffix("\n") for line in lines if line.endswith("\n")]

    def log_path(self) -> str:
        """A path for a log."""
        return os.fspath(self.scratch / "logs" / f"{secrets.token_hex(4)}.log")

    def leaks(self) -> list[str]:
        """What is left after all pods were discarded and the driver was closed."""
        found = [str(path) for path in (self.config.state_dir / "vms").glob("*")]
        found += [str(path) for path in (self.config.state_dir / "vm-pods").glob("*")]
        found += [str(path) for path in (self.config.root_dir / "vm-scratch").glob("*")]
        found += [str(path) for path in mounts.mounts_below(self.scratch)]
        found += [path.name for path in (self.scratch / "leases").glob("*/10.*")]
        return found

    async def crash(self) -> None:
        """Leave the driver as SIGKILL does: nothing is flushed, nothing is told to anybody."""
        driver = self.driver
        for sandbox in driver._sandboxes.values():
            sandbox._watch.cancel()
            await sandbox._plugs.close()
            await sandbox._volumes.close()
            for container in sandbox._containers.values():
                await container.close()
            sandbox._agent._writer.transport.abort()
            await sandbox._agent.close()
            await sandbox._clone.machine.close()
        driver._sandboxes.clear()
        self.sandboxes.clear()
        await driver.close()

    async def again(self, source: Source | None = None) -> None:
        """A new driver that knows only what is on disk; unless it has another source it is ready."""
        await self.driver.close()
        self.hypervisor = backend(self.config.vm).booting(await guest(), CACHE / "test-root/hypervisor")
        self.network = PodNetwork(self.config.network, self.config.root_dir / "net")
        self.driver = VmDriver(
            self.config, self.network, backend(self.config.vm).machines, source or self.source
        )
        await self.driver.open()
        await until(lambda: bool(source) or isinstance(self.driver._state, Ready), 120)

    async def source(self) -> tuple[Hypervisor, GuestFiles]:
        """See :data:`orlop.sandbox.vm.driver.Source`."""
        return self.hypervisor, await guest()

    @property
    def pool(self) -> Pool:
        """The pool of a driver that is ready."""
        assert isinstance(self.driver._state, Ready)
        return self.driver._state.pool

    async def recover(self, pod: PodSpec, *containers: ContainerSpec) -> VmSandbox:
        """Find a pod again."""
        sandbox = await self.driver.recover(pod, containers)
        self.sandboxes.append(sandbox)
        return sandbox


async def guest() -> GuestArtifacts:
    """The guest, built from this checkout or, with ORLOP_TEST_AGENT, with the agent of another."""
    other = os.environ.get("ORLOP_TEST_AGENT", "")
    return await build(CACHE / "guest", package=Path(other) if other else None)


@asynccontextmanager
async def environment(
    *, pool: int = 0, templates: str = "test-root", **vm: Any
) -> AsyncIterator[Environment]:
    """A driver that is ready; all of its pods are gone afterwards, and nothing else is left.

    ``templates`` is another place for VM templates, for guests that are not those of other tests.
    """
    scratch = Path(tempfile.mkdtemp(prefix="orlvm-"))
    (scratch / "net.d").mkdir()
    document = json.loads(conflist.default_conflist([SUBNET], name="orlvmtest", bridge=BRIDGE))
    document["plugins"][0]["ipam"]["dataDir"] = str(scratch / "leases")
    document.pop("orlop.masquerade", None)
    (scratch / "net.d/10-test.conflist").write_text(json.dumps(document))
    config = Config(
        root=str(scratch / "root"),
        state=str(scratch / "state"),
        network=NetworkConfig(conf_dir=str(scratch / "net.d")),
        vm=msgspec.structs.replace(vm_config(accelerator=ACCELERATOR), pool=PoolConfig(size=pool), **vm),
    )
    artifacts = await guest()
    # One template serves all tests with the same guest.
    hypervisor = backend(config.vm).booting(artifacts, CACHE / templates / "hypervisor")
    network = PodNetwork(config.network, config.root_dir / "net")

    async def source() -> tuple[Hypervisor, GuestFiles]:
        return hypervisor, artifacts

    driver = VmDriver(config, network, backend(config.vm).machines, source)
    env = Environment(scratch, config, hypervisor, network, driver)
    try:
        await driver.open()
        await until(lambda: isinstance(driver._state, Ready), 120)
        yield env
        for sandbox in env.sandboxes:
            await env.driver.discard(sandbox.pod_id)
        await env.driver.close()
        leaks = env.leaks()
        assert not leaks, leaks
    finally:
        for sandbox in env.sandboxes:
            with suppress(Exception):
                await env.driver.discard(sandbox.pod_id)
        await env.driver.close()
        await process.run(["ip", "link", "delete", BRIDGE], check=False)
        mounts.unmount_below(scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        _reap()


def _reap() -> None:
    """A VM that was recovered is still this process' child, and its first owner forgot it."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that sets no event."""
    async with asyncio.timeout(seconds * PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def collected(process_io: ProcessIO) -> tuple[bytes, bytes, int]:
    """Both outputs of a process and its exit code."""
    parts: dict[int, bytes] = {1: b"", 2: b""}
    async for number, data in process_io.output():
        parts[number] += data
    status = await process_io.wait()
    await process_io.close()
    return parts[1], parts[2], status.code


async def execute(sandbox: VmSandbox, container_id: str, *args: str) -> tuple[bytes, bytes, int]:
    """Run something in a container."""
    return await collected(await sandbox.exec(container_id, ExecSpec(args=args)))


async def said(sandbox: VmSandbox, spec: ContainerSpec, script: str) -> str:
    """What a script in a container says; it succeeds."""
    out, err, code = await execute(sandbox, spec.id, "sh", "-c", script)
    assert code == 0, (script, out, err)
    return out.decode().strip()
