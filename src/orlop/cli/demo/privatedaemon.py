"""A daemon of one's own, in a scratch directory: for the demo, tests and benchmarks.

Nothing here touches the machine's own daemon: sockets, state, pod network and its bridge are private.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import json
import os
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from orlop.cli import starting
from orlop.cli.demo import lending
from orlop.cli.demo.children import stop
from orlop.cli.guest import cache_of
from orlop.config import Config
from orlop.errors import NotFound
from orlop.guestos import build as guestos
from orlop.host import process


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
    def root(self) -> Path:
        """Where it keeps what survives a reboot."""
        return self.scratch / "root"

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
        "root": os.fspath(settings.root),
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
    lending.borrow(settings.base, settings.root)
    path = scratch / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


async def start(settings: Settings) -> Process:
    """Start the daemon on files that were written, and wait until it listens."""
    command = (*starting.COMMAND, "--config", settings.scratch / "config.toml")
    return await starting.listening(command, settings.socket, settings.log)


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
            await asyncio.to_thread(lending.give_back, settings.base, settings.root)
