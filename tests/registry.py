"""Debian's docker-registry on loopback, filled by the tests, and a wire to it that can be cut.

    with Registry(tmp_path) as registry:
        registry.push("app", ["1"], image)
        store = ImageStore(root, ImageConfig(registries_conf=registry.conf))
        await store.pull(f"{registry.address}/app:1")

The program is unpacked from its package, never installed, so no service starts.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType

from orlop.cli.demo.imagewriter import Pusher, WrittenImage
from tests.conformance import tools
from tests.patience import PATIENCE

USER, PASSWORD = "user", "secret"
HTPASSWD = "user:$2b$04$.SHSUhrJvPVQbRgcsjr1HOhUVnxZ5cwuZsNvIXiTAdgOiYAn8ybKu\n"

_CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: "{root}"}}
  delete: {{enabled: true}}
http: {{addr: "{address}"}}
"""
_AUTH = 'auth: {{htpasswd: {{realm: test, path: "{path}"}}}}\n'


class Registry:
    """One registry, a context manager. With ``auth`` it asks for USER and PASSWORD.

    ``conf`` is a registries.conf that allows plain http to it, and to ``also`` (other addresses).
    """

    def __init__(self, directory: Path, *, auth: bool = False, storage: Path | None = None) -> None:
        self.directory = directory
        self.storage = storage or directory / "storage"
        self.address = f"127.0.0.1:{tools.free_port()}"
        self._auth = auth
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.conf = self.allow(self.address)

    def allow(self, *addresses: str, mirror: tuple[str, str] | None = None) -> str:
        """The path of a registries.conf for those addresses; ``mirror`` is (location, mirror)."""
        path = self.directory / f"registries-{abs(hash((addresses, mirror)))}.conf"
        parts = [f'[[registry]]\nlocation = "{address}"\ninsecure = true\n' for address in addresses]
        if mirror is not None:
            parts.append(
                f'[[registry]]\nlocation = "{mirror[0]}"\n'
                f'[[registry.mirror]]\nlocation = "{mirror[1]}"\ninsecure = true\n'
            )
        path.write_text("\n".join(parts))
        return os.fspath(path)

    def push(self, repository: str, tags: Iterable[str], *images: WrittenImage) -> str:
        """Fill it; the digest that was pushed. Only without ``auth``."""
        return Pusher(self.address).push(repository, tags, *images)

    def blob_file(self, digest: str) -> Path:
        """Where a blob stands on disk, to be damaged."""
        value = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / value[:2] / value / "data"

    def start(self) -> None:
        config = self.directory / "config.yml"
        text = _CONFIG.format(root=self.storage, address=self.address)
        if self._auth:
            passwords = self.directory / "htpasswd"
            passwords.write_text(HTPASSWD)
            text += _AUTH.format(path=passwords)
        config.write_text(text)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [tools.docker_registry(), "serve", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        limit = time.monotonic() + 60 * PATIENCE
        while time.monotonic() < limit:
            if self._process.poll() is not None:
                break
            with suppress(OSError):
                connection = http.client.HTTPConnection(self.address, timeout=2)
                connection.request("GET", "/v2/")
                connection.getresponse().read()
                connection.close()
                return
            time.sleep(0.025)
        self.stop()
        raise RuntimeError("docker-registry did not start: " + (self.directory / "log").read_text()[-400:])

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60 * PATIENCE)
            self._process = None

    def __enter__(self) -> Registry:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Wire:
    """Forwards connections to a registry, counts what comes from it, and can cut or hold them."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.address = ""
        self.received = 0
        self.cut_after: int | None = None
        """Cut every connection once so many bytes have come in all; then work again."""
        self.hold_after: int | None = None
        """Let nothing through any more once so many bytes have come."""
        self.drip_after: int | None = None
        """Let 100 bytes through every tenth of a second once so many have come."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        up = asyncio.ensure_future(self._copy(reader, far_writer))
        try:
            await self._down(far_reader, writer)
        finally:
            up.cancel()
            for end in (writer, far_writer):
                end.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 14):
                self.received += len(data)
                if self.cut_after is not None and self.received > self.cut_after:
                    self.cut_after = None
                    writer.transport.abort()
                    return
                while self.drip_after is not None and self.received > self.drip_after and data:
                    writer.write(data[:100])
                    await writer.drain()
                    data = data[100:]
                    await asyncio.sleep(0.1)
                while self.hold_after is not None and self.received > self.hold_after:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def wire(target: str) -> AsyncIterator[Wire]:
    """A wire to ``target``, an address of a registry."""
    one = Wire(target)
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await one.serve(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    one.address = "{}:{}".format(*server.sockets[0].getsockname()[:2])
    try:
        yield one
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
