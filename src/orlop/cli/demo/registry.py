"""A registry on loopback: Debian's ``docker-registry``, unpacked and not installed."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from orlop.cli.demo.children import stop
from orlop.cli.problems import CliError
from orlop.errors import OrlopError
from orlop.host import process
from orlop.linux.removal import remove_tree

REGISTRY_CONFIG = """version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: ROOT}
  cache: {blobdescriptor: inmemory}
http: {addr: "ADDRESS"}
"""


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
