"""The streams of an exec and of an attach, and connections into a pod.

An exec is a child of the daemon: the runtime's ``exec``, which ends as the process in the container
does. Without a terminal its streams are three pipes; with one, it gets a terminal of ours and hands on
its size. What a reader does not take stays in the pipe, which stops the process.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import socket
import struct
import termios
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from orlop.errors import FailedPrecondition
from orlop.host import namespaces, process, tasks, threads
from orlop.sandbox.process import conmon
from orlop.sandbox.process.runtime import Runtime, last_error, refusal
from orlop.sandbox.spec import ExecSpec, ExitStatus

_CHUNK = 1 << 16
_PACKET = 1 << 15
_QUEUE = 4
_STDOUT, _STDERR = 1, 2
_ATTACH_STREAMS = {2: _STDOUT, 3: _STDERR}
_CONNECT_TIME = 10.0
_NAMED_TIME = 10.0
_NAMED_STEP = 0.02


class _Bundle(msgspec.Struct):
    process: dict[str, Any]


class HostExec:
    """A running exec; implements ``ProcessIO``."""

    def __init__(self, child: process.Child, directory: Path, name: str, terminal: int = -1) -> None:
        self._child = child
        self._directory = directory
        self._name = name
        self._terminal = terminal
        self._input: asyncio.StreamWriter | None = child.stdin
        self._readers: list[tuple[int, asyncio.StreamReader]] = []
        self._transports: list[asyncio.BaseTransport] = []
        self._closed = False

    @classmethod
    async def start(
        cls, runtime: Runtime, container_id: str, spec: ExecSpec, directory: Path, name: str
    ) -> HostExec:
        """Run the runtime's exec; ``directory`` is for its files and is removed in the end.

        It lies in the container's bundle, whose first process the new one is like.
        """
        options = ["--pid-file", os.fspath(directory / "pid"), "--process", os.fspath(directory / "process")]
        argv = runtime.command(directory / "log", "exec", *options, *(["--tty"] if spec.tty else []))
        argv.append(container_id)
        try:
            await threads.call(_describe, directory, spec)
            if spec.tty:
                return await cls._on_terminal(argv, directory, name, spec)
            stdin = PIPE if spec.stdin else asyncio.subprocess.DEVNULL
            child = await process.spawn(argv, stdin=stdin, stdout=PIPE, stderr=PIPE)
        except BaseException:
            _remove(directory)
            raise
        found = cls(child, directory, name)
        assert child.stdout is not None and child.stderr is not None
        found._readers = [(_STDOUT, child.stdout), (_STDERR, child.stderr)]
        return found

    @classmethod
    async def _on_terminal(cls, argv: list[str], directory: Path, name: str, spec: ExecSpec) -> HostExec:
        master, slave = os.openpty()
        # The runtime hands the size of its own terminal on.
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("=HHHH", spec.height, spec.width, 0, 0))
        try:
            child = await process.spawn(argv, stdin=slave, stdout=slave, stderr=slave)
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        os.set_blocking(master, False)
        found = cls(child, directory, name, master)
        try:
            await found._join_terminal(master)
        except BaseException:
            await found.close()
            raise
        return found

    async def _join_terminal(self, master: int) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_CHUNK)
        incoming, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(master), "rb", buffering=0)
        )
        self._transports.append(incoming)
        outgoing, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()),
            os.fdopen(os.dup(master), "wb", buffering=0),
        )
        self._transports.append(outgoing)
        self._input = asyncio.StreamWriter(outgoing, protocol, None, loop)
        self._readers = [(_STDOUT, reader)]

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """See ``ProcessIO``."""
        async for item in merged([(number, reader.read) for number, reader in self._readers]):
            yield item

    async def write(self, data: bytes) -> None:
        """See ``ProcessIO``."""
        if self._input is None:
            return
        with suppress(BrokenPipeError, ConnectionResetError):
            self._input.write(data)
            await self._input.drain()

    async def close_stdin(self) -> None:
        """See ``ProcessIO``. A terminal has no end of file of its own."""
        if self._input is not None and self._terminal < 0:
            with suppress(BrokenPipeError, ConnectionResetError):
                self._input.close()

    async def resize(self, width: int, height: int) -> None:
        """See ``ProcessIO``."""
        if self._terminal < 0:
            return
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("=HHHH", height, width, 0, 0))
        process.signal_child(self._child, signal.SIGWINCH)

    async def signal(self, number: int) -> None:
        """See ``StartedProcess``."""
        if inner := await self._inner():
            process.send_signal(inner, process.process_start_time(inner), number)

    async def wait(self) -> ExitStatus:
        """The exit. Raises CannotRun or FailedPrecondition when the command could not be run at all."""
        code = await self._child.wait()
        if code != 0 and not (self._directory / "pid").exists():
            reason = last_error(self._directory / "log")
            if reason:
                raise refusal(f"cannot run a command in {self._name}", reason)
        return ExitStatus(code=code if code >= 0 else 128 - code, finished_at=time.time_ns())

    async def close(self) -> None:
        """Kill the process if it still runs, release everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await tasks.uncancelled(self._release())

    async def _inner(self) -> int:
        """The process in the container; 0 when there is none.

        The runtime says which it is after it has started it, on a busy machine long after."""
        path = self._directory / "pid"
        with suppress(TimeoutError):
            async with asyncio.timeout(_NAMED_TIME):
                while not path.exists() and self._runs():  # noqa: ASYNC110 - no event tells of a file
                    await asyncio.sleep(_NAMED_STEP)
        return conmon.read_pid(path)

    def _runs(self) -> bool:
        # asyncio knows of an end only when the pipes are closed as well.
        return self._child.returncode is None and process.process_start_time(self._child.pid) != 0

    async def _release(self) -> None:
        if self._child.returncode is None:
            # The runtime's own death would leave the process in the container alone.
            inner = await self._inner()
            if inner:
                process.send_signal(inner, process.process_start_time(inner), signal.SIGKILL)
                with suppress(TimeoutError):
                    async with asyncio.timeout(2):
                        await process.wait_pid(self._child.pid)
        await process.reap(self._child)
        for transport in self._transports:
            transport.close()
        if self._input is not None:
            self._input.close()
        if self._terminal >= 0:
            os.close(self._terminal)
        await threads.call(_remove, self._directory)


Read = Callable[[int], Coroutine[Any, Any, bytes]]


async def merged(readers: list[tuple[int, Read]]) -> AsyncIterator[tuple[int, bytes]]:
    """What several streams give, as it comes, until all have ended; little is read ahead."""
    queue: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue(_QUEUE)

    async def pump(number: int, read: Read) -> None:
        with suppress(OSError):  # EIO is the end of a terminal
            while data := await read(_CHUNK):
                await queue.put((number, data))
        await queue.put((number, b""))

    pumps = tasks.Tasks()
    for number, read in readers:
        pumps.spawn(pump(number, read), f"stream {number}")
    try:
        left = len(readers)
        while left:
            number, data = await queue.get()
            if data:
                yield number, data
            else:
                left -= 1
    finally:
        await pumps.close()


def _describe(directory: Path, spec: ExecSpec) -> None:
    bundle = msgspec.json.decode((directory.parent / "config.json").read_bytes(), type=_Bundle)
    document = {**bundle.process, "args": spec.args, "terminal": spec.tty}
    if spec.tty and not any(variable.startswith("TERM=") for variable in document["env"]):
        document["env"] = [*document["env"], "TERM=xterm"]
    if spec.tty and spec.width and spec.height:
        # The runtime sets it before the program runs; what is told later may come after its first look.
        document["consoleSize"] = {"width": spec.width, "height": spec.height}
    if spec.env:
        document["env"] = [f"{name}={os.fsdecode(value)}" for name, value in spec.env]
    if spec.cwd:
        document["cwd"] = spec.cwd
    if spec.user is not None:
        user = spec.user
        document["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)}
    directory.mkdir(mode=0o700)
    (directory / "process").write_bytes(msgspec.json.encode(document))


def _remove(directory: Path) -> None:
    for name in ("pid", "log", "process", ".pid"):
        (directory / name).unlink(missing_ok=True)
    with suppress(OSError):
        directory.rmdir()


class Attached:
    """A client of a container's own streams; implements ``ProcessIO``."""

    def __init__(
        self,
        client: socket.socket,
        bundle: Path,
        exited: Callable[[], Coroutine[Any, Any, ExitStatus]],
        *,
        stdin: bool,
    ) -> None:
        self._client = client
        self._bundle = bundle
        self._exited = exited
        self._stdin = stdin

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """See ``ProcessIO``."""
        loop = asyncio.get_running_loop()
        with suppress(ConnectionResetError):
            while packet := await loop.sock_recv(self._client, _CHUNK):
                if (stream := _ATTACH_STREAMS.get(packet[0])) is not None and len(packet) > 1:
                    yield stream, packet[1:]

    async def write(self, data: bytes) -> None:
        """See ``ProcessIO``."""
        if not self._stdin:
            return
        loop = asyncio.get_running_loop()
        with suppress(BrokenPipeError, ConnectionResetError):
            for start in range(0, len(data), _PACKET):
                await loop.sock_sendall(self._client, data[start : start + _PACKET])

    async def close_stdin(self) -> None:
        """See ``ProcessIO``; the container sees it only if its stdin is to be used once."""
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)

    async def resize(self, width: int, height: int) -> None:
        """See ``ProcessIO``."""
        await threads.call(conmon.resize, self._bundle, width, height)

    async def wait(self) -> ExitStatus:
        """The exit of the container."""
        return await self._exited()

    async def close(self) -> None:
        """Detach. Idempotent."""
        self._client.close()


class TcpConnection:
    """A byte stream to a port of the pod; implements ``Connection``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, limit: int) -> bytes:
        """See ``Connection``."""
        try:
            return await self._reader.read(limit)
        except ConnectionError:
            return b""

    async def write(self, data: bytes) -> None:
        """See ``Connection``."""
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        """See ``Connection``."""
        with suppress(OSError):
            self._writer.write_eof()

    async def close(self) -> None:
        """See ``Connection``."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


async def connect(netns: Path | None, port: int) -> TcpConnection:
    """Connect to a port on the loopback of a network namespace (None: the host's).

    Raises FailedPrecondition when nothing listens there.
    """
    reason = ""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):

        def make(family: int = family) -> socket.socket:
            return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

        try:
            # A socket stays in the namespace that it was made in.
            client = make() if netns is None else await namespaces.within({"net": netns}, make)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                continue
            raise
        try:
            async with asyncio.timeout(_CONNECT_TIME):
                await asyncio.get_running_loop().sock_connect(client, (address, port))
            return TcpConnection(*await asyncio.open_connection(sock=client))
        except (OSError, TimeoutError) as error:
            client.close()
            reason = reason or (getattr(error, "strerror", "") or "no answer")
        except BaseException:
            client.close()
            raise
    raise FailedPrecondition(f"port {port} of the pod cannot be reached: {reason}")
