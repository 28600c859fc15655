"""Talk to one QEMU over its monitor socket (QMP), with errors of our own family.

The library ``qemu.qmp`` speaks the protocol; this adds a time limit to every command and hands every
event to one callback, in order.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError

from orlop.errors import DeadlineExceeded, Internal, Unavailable
from orlop.host.tasks import Tasks, beside, uncancelled

log = logging.getLogger(__name__)
# The library reports the end of every connection with a traceback; the end of a machine is our own to report.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

EventHandler = Callable[[str, dict[str, object]], None]
Why = Callable[[], Awaitable[str]]
"""Tells why a QEMU is gone, once that is known; "" when nobody knows."""
_TIMEOUT = 30.0


async def _unknown() -> str:
    return ""


class CommandFailed(Internal):
    """QEMU refused a command; ``reason`` is its class of error (QMP specification, "error")."""

    def __init__(self, name: str, command: str, reason: str, description: str) -> None:
        super().__init__(f"QEMU of {name} refused {command}: {description}")
        self.reason = reason


class Monitor:
    """A connection to one QEMU. Make it with :meth:`connect`; :meth:`close` releases it."""

    def __init__(self, name: str, client: QMPClient, on_event: EventHandler, why: Why = _unknown) -> None:
        self._name = name
        self._client = client
        self._on_event = on_event
        self._why = why
        self._listener = EventListener()
        self._closing = asyncio.Event()
        self._passing = asyncio.Lock()
        self._tasks = Tasks()

    @classmethod
    async def connect(
        cls, name: str, path: str, on_event: EventHandler, *, why: Why = _unknown, timeout: float = _TIMEOUT
    ) -> Monitor:
        """Connect to the socket at ``path`` and negotiate. Raises Unavailable, DeadlineExceeded.

        ``on_event`` gets each event's name and data; it must not block. ``why`` is asked when a command
        finds QEMU gone."""
        client = QMPClient(name)
        client.logger.setLevel(logging.CRITICAL)
        monitor = cls(name, client, on_event, why)
        client.register_listener(monitor._listener)
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.setblocking(False)
        try:
            peer.connect(path)
            async with asyncio.timeout(timeout):
                await client.connect(peer)
        except TimeoutError as error:
            peer.close()
            raise DeadlineExceeded(f"QEMU of {name} did not answer within {timeout:g} seconds") from error
        except (OSError, QMPError) as error:
            peer.close()
            raise Unavailable(f"QEMU of {name} cannot be reached: {error}") from error
        except BaseException:
            peer.close()
            raise
        monitor._tasks.spawn(monitor._deliver(), f"the events of {name}")
        monitor._tasks.spawn(monitor._follow(), f"the monitor of {name}")
        return monitor

    async def execute(
        self, command: str, arguments: dict[str, object] | None = None, *, timeout: float = _TIMEOUT
    ) -> object:
        """Run one command and return its result.

        Raises CommandFailed when QEMU refuses, Unavailable when it is gone, DeadlineExceeded."""
        async with self._errors(command, timeout):
            while self._passing.locked():
                async with self._passing:
                    pass
            return await self._client.execute(command, arguments)

    async def execute_with(
        self, descriptor: int, command: str, arguments: dict[str, object] | None = None
    ) -> object:
        """:meth:`execute` a command that takes the open file ``descriptor``, which stays the caller's."""
        async with self._passing:
            # To its end: a caller that went away must not let the next command in.
            return await uncancelled(self._pass(descriptor, command, arguments))

    async def _pass(self, descriptor: int, command: str, arguments: dict[str, object] | None) -> object:
        """Send both, and wait for the answer.

        Nothing else may be sent meanwhile. Of two descriptors QEMU would keep the last. And one of its
        threads reads what comes and then looks at the descriptors that have come, while another takes them
        away, without a lock (QEMU 7.2 and 10.0, ``tcp_chr_recv`` and ``tcp_get_msgfds``): a byte that
        arrives between two writes of the other ends QEMU by SIGSEGV. It reads on while a command runs, as
        the library asks for commands out of band."""
        async with self._errors(command, _TIMEOUT):
            self._client.send_fd_scm(descriptor)
            return await self._client.execute(command, arguments)

    @asynccontextmanager
    async def _errors(self, command: str, timeout: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"QEMU of {self._name} did not answer {command} within {timeout:g} seconds"
            ) from error
        except ExecuteError as error:
            raise CommandFailed(self._name, command, error.error_class, str(error)) from error
        except (QMPError, OSError) as error:
            why = await self._why()
            raise Unavailable(f"QEMU of {self._name} has ended" + (f": {why}" if why else "")) from error

    async def close(self) -> None:
        """Disconnect; QEMU goes on. Idempotent."""
        self._closing.set()
        await uncancelled(self._tasks.drain())

    async def _follow(self) -> None:
        """Disconnect when asked to, or when QEMU has ended: the library's own error is then retrieved."""
        try:
            async with (
                beside(self._client.runstate_changed()) as changed,
                beside(self._closing.wait()) as asked,
            ):
                await asyncio.wait((changed, asked), return_when=asyncio.FIRST_COMPLETED)
        finally:
            try:
                await self._client.disconnect()
            except (QMPError, OSError, EOFError) as error:
                log.debug("monitor of %s: %s", self._name, error)
            self._closing.set()

    async def _deliver(self) -> None:
        async with beside(self._closing.wait()) as ended:
            while True:
                async with beside(self._listener.get()) as message:
                    await asyncio.wait((message, ended), return_when=asyncio.FIRST_COMPLETED)
                if message.cancelled():
                    return
                name, data = _event(message.result())
                try:
                    self._on_event(name, data)
                except Exception:
                    log.exception("event %s of %s could not be handled", name, self._name)


def _event(message: Message) -> tuple[str, dict[str, object]]:
    data = message.get("data")
    return str(message.get("event", "")), dict(data) if isinstance(data, dict) else {}
