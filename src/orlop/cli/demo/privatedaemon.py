"""A daemon and a registry of one's own, in a scratch directory: for the demo, tests and benchmarks.

Nothing here touches the machine's own daemon: sockets, state, pod network and its bridge are private.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import ipaddress
import json
import os
import shutil
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from orlop.cli.guest import cache_of
from orlop.cli.problems import CliError
from orlop.config import Config
from orlop.errors import NotFound, OrlopError
from orlop.guestos import build as guestos
from orlop.host import process
from orlop.linux.removal import remove_tree

START_TIMEOUT = 60.0

REGISTRY_CONFIG = """version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: ROOT}
  cache: {blobdescriptor: inmemory}
http: {addr: "ADDRESS"}
"""


@dataclass(frozen=True)
class Settings:
    """A private daemon.

    ``base`` is where the handlers' settings and the guest image come from, ``mirrors`` maps a registry
    host to ``host:port/path`` served over plain http, ``extra`` are further keys by table of the
    configuration file ("top" for those outside of any).
    """

    scratch: Path
    mirrors: Mapping[str, str] = field(default_factory=dict)
    handler: str = "vm"
    base: Config = field(default_factory=Config)
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def socket(self) -> str:
        """The daemon's socket."""
        return os.fspath(self.scratch / "orlop.sock")

    @property
    def log(self) -> Path:
        """The daemon's log."""
        return self.scratch / "orlopd.log"

    @property
    def bridge(self) -> str:
        """The name of the bridge of its pod network, at most 15 characters."""
        return f"orl{self._number():08x}"

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        """The pods' addresses: a /24 of 10.89.0.0/16 chosen by the directory's name."""
        return ipaddress.IPv4Network((0x0A590000 + (self._number() % 256 << 8), 24))

    def _number(self) -> int:
        return int.from_bytes(hashlib.sha256(os.fsencode(self.scratch)).digest()[:4], "big")

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the daemon's log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"(no log: {error})"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)


def _conflist(settings: Settings) -> dict[str, Any]:
    ipam = {
        "type": "host-local",
        "dataDir": os.fspath(settings.scratch / "ipam"),
        "ranges": [[{"subnet": str(settings.subnet)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": settings.bridge,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": ipam,
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return {"cniVersion": "1.0.0", "name": settings.bridge, "plugins": [bridge, portmap]}


def _hypervisor_dir(config: Config) -> Path:
    return config.root_dir / "hypervisor"


def borrow(settings: Settings) -> None:
    """Take over what the machine's own daemon has made: guest image, accelerator's probe, template.

    The first is linked to, the others are copied: a daemon throws away templates that do not fit it.
    """
    root = settings.scratch / "root"
    root.mkdir(parents=True, exist_ok=True)
    guest = root / "guest"
    if not guest.is_symlink():
        guest.symlink_to(cache_of(settings.base))
    source = _hypervisor_dir(settings.base)
    if source.is_dir() and not (root / "hypervisor").exists():
        _copy(source, root / "hypervisor")


def give_back(settings: Settings) -> None:
    """Let the machine's own daemon have a template that was built here, if it has none at all."""
    source, target = settings.scratch / "root" / "hypervisor", _hypervisor_dir(settings.base)
    kept = {path.name for path in target.glob("template-*")} if target.is_dir() else set()
    made = {path.name for path in source.glob("template-*")} if source.is_dir() else set()
    if not made or made <= kept:
        return
    aside = target.with_name(f"{target.name}.{os.getpid()}")
    _copy(source, aside)
    if target.is_dir():
        target.rename(target.with_name(f"{target.name}.old"))
    aside.rename(target)
    remove_tree(target.with_name(f"{target.name}.old"))


def _copy(source: Path, target: Path) -> None:
    """Copy the finished files of a hypervisor's directory; memory images keep their holes."""
    target.mkdir(parents=True, exist_ok=True)
    names = [
        path
        for path in source.iterdir()
        if path.name == "accelerator.json" or path.name.startswith("template-")
    ]
    for path in names:
        with contextlib.suppress(FileNotFoundError):  # another daemon has just thrown it away
            _copy_one(path, target / path.name)


def _copy_one(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            _copy_one(path, target / path.name)
        return
    with source.open("rb") as reading, target.open("wb") as writing:
        size, position = os.fstat(reading.fileno()).st_size, 0
        writing.truncate(size)
        while position < size:
            try:
                start = os.lseek(reading.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                break
            position = os.lseek(reading.fileno(), start, os.SEEK_HOLE)
            reading.seek(start)
            writing.seek(start)
            while start < position:
                chunk = reading.read(min(1 << 20, position - start))
                if not chunk:
                    break
                start += writing.write(chunk)
    shutil.copystat(source, target)


async def ensure_guest(config: Config) -> None:
    """Build the guest image of a configuration unless it is there and fits."""
    try:
        guestos.find(config.vm.guest, cache_of(config))
    except NotFound:
        await guestos.build(cache_of(config))


def write_files(settings: Settings) -> Path:
    """Write the configuration and what it refers to; returns its path."""
    scratch = settings.scratch
    (scratch / "cni").mkdir(parents=True, exist_ok=True)
    (scratch / "cni" / "10-private.conflist").write_text(json.dumps(_conflist(settings), indent=2))
    registries = ['unqualified-search-registries = ["docker.io"]\n']
    registries += [
        f'[[registry]]\nprefix = "{host}"\nlocation = "{location}"\ninsecure = true\n'
        for host, location in settings.mirrors.items()
    ]
    (scratch / "registries.conf").write_text("\n".join(registries))
    (scratch / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
    sections: dict[str, dict[str, Any]] = {
        "vm": settings.base.vm.document(),
        "process": msgspec.to_builtins(settings.base.process),
        "images": {
            "registries_conf": os.fspath(scratch / "registries.conf"),
            "policy": os.fspath(scratch / "policy.json"),
        },
        "network": {"conf_dir": os.fspath(scratch / "cni")},
    }
    top: dict[str, Any] = {
        "socket": settings.socket,
        "root": os.fspath(scratch / "root"),
        "state": os.fspath(scratch / "state"),
        "default_handler": settings.handler,
    }
    for name, values in settings.extra.items():
        if name == "top":
            top.update(values)
        else:
            sections.setdefault(name, {}).update(values)
    lines = [f"{key} = {_toml(value)}" for key, value in top.items()]
    for name, values in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    borrow(settings)
    path = scratch / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


async def start(settings: Settings) -> Process:
    """Start the daemon on files that were written, and wait until it listens."""
    with settings.log.open("ab") as log:
        child = await process.spawn(
            [sys.executable, "-m", "orlop.daemon", "--config", settings.scratch / "config.toml"],
            env=dict(os.environ),
            stdout=log,
            stderr=log,
        )
    loop = asyncio.get_running_loop()
    limit = loop.time() + START_TIMEOUT
    while not await _listens(settings.socket):
        if child.returncode is not None:
            raise CliError(f"the private daemon ended at once:\n{settings.log_tail()}")
        if loop.time() > limit:
            child.kill()
            await child.wait()
            raise CliError(
                f"the private daemon does not listen after {START_TIMEOUT:g} s:\n{settings.log_tail()}"
            )
        await asyncio.sleep(0.05)
    return child


async def _listens(path: str) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


async def stop(child: Process) -> None:
    """End a child with TERM, and with KILL after 20 seconds."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            async with asyncio.timeout(20):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()


async def remove_bridge(settings: Settings) -> None:
    """Remove what the CNI plug-ins leave on the host: the bridge."""
    if (Path("/sys/class/net") / settings.bridge).exists():
        await process.run(["ip", "link", "delete", settings.bridge], check=False)


@contextlib.asynccontextmanager
async def daemon(settings: Settings) -> AsyncIterator[str]:
    """A private daemon until the block ends; yields its socket."""
    await asyncio.to_thread(write_files, settings)
    child = await start(settings)
    try:
        yield settings.socket
    finally:
        await stop(child)
        await remove_bridge(settings)
        if settings.handler == "vm":
            await asyncio.to_thread(give_back, settings)


async def registry_binary() -> Path:
    """Debian's docker-registry: installed, or unpacked from its package into a cache."""
    installed = shutil.which("docker-registry")
    if installed:
        return Path(installed)
    cache = Path(os.environ.get("ORLOP_CACHE") or Path.home() / ".cache" / "orlop")
    target = cache / "registry-binary" / "docker-registry"
    if target.exists():
        return target
    making = target.with_name(f"making-{os.getpid()}")
    making.mkdir(parents=True)
    try:
        await process.run(["apt-get", "-q", "download", "docker-registry"], cwd=making, timeout=300)
        (package,) = making.glob("*.deb")
        await process.run(["dpkg-deb", "-x", package, making / "root"])
        (making / "root" / "usr" / "bin" / "docker-registry").rename(target)
    except OrlopError as error:
        raise CliError(f"docker-registry could not be fetched (run apt-get update?): {error}") from error
    finally:
        await asyncio.to_thread(remove_tree, making)
    return target


def _answers(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextlib.asynccontextmanager
async def registry(directory: Path, address: str) -> AsyncIterator[str]:
    """A registry on loopback with its storage in ``directory``, until the block ends; yields its address."""
    binary = await registry_binary()
    directory.mkdir(parents=True)
    config = directory / "config.yml"
    text = REGISTRY_CONFIG.replace("ROOT", os.fspath(directory / "storage")).replace("ADDRESS", address)
    config.write_text(text)
    with (directory / "log").open("wb") as log:
        child = await process.spawn([binary, "serve", config], env=dict(os.environ), stdout=log, stderr=log)
    try:
        for _ in range(200):
            if child.returncode is None and await asyncio.to_thread(_answers, address):
                break
            if child.returncode is not None:
                raise CliError(f"docker-registry ended at once: {(directory / 'log').read_text()[-400:]}")
            await asyncio.sleep(0.05)
        else:
            raise CliError(f"docker-registry on {address} did not answer within 10 s")
        yield address
    finally:
        await stop(child)
