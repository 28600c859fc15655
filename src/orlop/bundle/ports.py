"""A pod's ports on the loopback of its network namespace, where containerd and CRI-O look for them.

They forward a port by connecting to localhost in the namespace that they made; what listens is in the
VM. So one listener there gets every TCP connection to the loopback, is told by the kernel which port was
meant, and connects to that on the loopback in the VM. Only processes of the host can be in that namespace.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from orlop.errors import FailedPrecondition, OrlopError
from orlop.host import netns, process
from orlop.host.tasks import Tasks, beside
from orlop.sandbox.base import Connection

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 256
"""At one time to one pod."""

_CHUNK = 1 << 16
_RULES_TIME = 20.0
_HALF_OPEN = 60.0
"""Seconds for the answer to one who says no more: whether he is still there is not known before it is sent.
containerd itself gives it one second."""

_ORIGINAL_DESTINATION = 80
"""SO_ORIGINAL_DST of linux/netfilter_ipv4.h: where a connection was going before it was redirected."""

_ADDRESS = struct.Struct("!2xH12x")
_TABLE = "orlop_shim"
"""What a daemon of an earlier version has called it as well: its rules must not stay beside these."""

Dial = Callable[[int], Awaitable[Connection]]


class PodPorts:
    """The listeners of all pods. :meth:`close` ends them; they are made anew by the next daemon."""

    def __init__(self) -> None:
        self._tasks = Tasks()
        self._pods: dict[str, asyncio.Task[None]] = {}

    def open(self, pod_id: str, namespace: str, dial: Dial) -> None:
        """Listen in the network namespace at ``namespace`` soon; that nobody can is logged and no failure.

        Idempotent; where nobody could, it is tried again.
        """
        if self._tasks.closed or (pod_id in self._pods and not self._pods[pod_id].done()):
            return
        work = _Loopback(Path(namespace), dial).serve()
        self._pods[pod_id] = self._tasks.spawn(work, f"the ports of pod {pod_id[:12]}")

    async def drop(self, pod_id: str) -> None:
        """Listen no more: a namespace with a socket in it does not go. Idempotent."""
        if (task := self._pods.pop(pod_id, None)) is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def close(self) -> None:
        """Listen for nobody. Idempotent."""
        await self._tasks.close()
        self._pods.clear()


class _Loopback:
    def __init__(self, namespace: Path, dial: Dial) -> None:
        self._namespace = namespace
        self._dial = dial
        self._tasks = Tasks()

    async def serve(self) -> None:
        try:
            if self._namespace.samefile("/proc/self/ns/net"):
                raise FailedPrecondition("it is the host's own")
            listener = await netns.within(self._namespace, _listening, unwanted=socket.socket.close)
        except (OSError, OrlopError) as error:
            log.warning("ports of the pod in %s cannot be forwarded: %s", self._namespace, error)
            return
        try:
            server = await asyncio.start_server(self._accept, sock=listener)
        except BaseException:
            listener.close()
            raise
        try:
            rules = _rules(listener.getsockname()[1])
            command = ["nsenter", f"--net={self._namespace}", "nft", "-f", "-"]
            await process.run(command, input=rules.encode(), timeout=_RULES_TIME)
            await asyncio.Event().wait()
        except OrlopError as error:
            log.warning("ports of the pod in %s cannot be forwarded: %s", self._namespace, error)
        finally:
            server.close()
            await self._tasks.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MOST_CONNECTIONS or self._tasks.closed:
            writer.transport.abort()
            return
        self._tasks.spawn(self._carry(reader, writer), f"a connection to the pod in {self._namespace}")

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inside = await self._dial(_meant(writer.get_extra_info("socket")))
            try:
                await _pass(reader, writer, inside)
                writer.close()
                await writer.wait_closed()
            finally:
                await inside.close()
        except (OSError, OrlopError) as error:
            log.debug("a connection to the pod in %s has ended: %s", self._namespace, error)
        finally:
            # A reset, where it did not end well: nothing else can still say that nobody listens.
            writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, inside: Connection) -> None:
    """Pass on both directions; when one has ended, the other one for so long that nobody is cut off."""
    async with beside(_inward(reader, inside)) as inward, beside(_outward(inside, writer)) as outward:
        ended, left = await asyncio.wait((inward, outward), return_when=asyncio.FIRST_COMPLETED)
        if left and not _failures(ended):
            ended, _ = await asyncio.wait(left, timeout=_HALF_OPEN)
        for error in _failures(ended):
            raise error


def _failures(ended: Collection[asyncio.Task[None]]) -> list[BaseException]:
    return [error for task in ended if (error := task.exception()) is not None]


async def _inward(reader: asyncio.StreamReader, inside: Connection) -> None:
    while data := await reader.read(_CHUNK):
        await inside.write(data)
    await inside.write_eof()


async def _outward(inside: Connection, writer: asyncio.StreamWriter) -> None:
    while data := await inside.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    await writer.drain()


def _listening() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _meant(link: socket.socket) -> int:
    """The port that whoever connected asked for. Raises OSError."""
    port: int
    (port,) = _ADDRESS.unpack(link.getsockopt(socket.SOL_IP, _ORIGINAL_DESTINATION, _ADDRESS.size))
    return port


def _rules(port: int) -> str:
    """The nft(8) commands that send everything for the loopback to ``port``, in the place of earlier ones."""
    rule = f"ip daddr 127.0.0.0/8 meta l4proto tcp redirect to :{port}"
    chain = f"  chain output {{\n    type nat hook output priority -100;\n    {rule}\n  }}\n"
    return f"table ip {_TABLE}\ndelete table ip {_TABLE}\ntable ip {_TABLE} {{\n{chain}}}\n"
