"""Exec and attach: joins the client's channels to a process's streams.

The last word goes to the error channel: since protocol v4 a JSON ``Status`` object with the
exit code, before it plain text for failures only (Kubernetes remote command subprotocols
``channel.k8s.io`` … ``v5.channel.k8s.io``).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable

from orlop.cri.streaming.channels import CommandChannels, Reader, first_failure
from orlop.errors import OrlopError
from orlop.sandbox.base import ProcessIO
from orlop.sandbox.spec import ExitStatus

log = logging.getLogger(__name__)

MAX_RESIZE_TEXT = 4096
STATUS_PROTOCOLS = frozenset({"v4.channel.k8s.io", "v5.channel.k8s.io"})


FIRST_SIZE_TIME = 0.25
"""Seconds that a client has to tell the size of its terminal before the process starts without."""

Size = tuple[int, int]
Start = Callable[[Size], Awaitable[ProcessIO]]


async def serve(channels: CommandChannels, start: Start, *, protocol: str, report_exit: bool) -> None:
    """Run one session to its end and report it on the error channel.

    ``start`` begins the exec or the attach, with the size of the client's terminal or (0, 0);
    ``report_exit`` is true for an exec, whose exit code the client wants. Cancelled when the client
    goes away, which closes the process's streams.
    """
    structured = protocol in STATUS_PROTOCOLS
    report = await _outcome(channels, start, structured=structured, report_exit=report_exit)
    # The error channel comes last: a client that has its report stops reading the others.
    for output in (channels.stdout, channels.stderr):
        if output is not None:
            await output.close()
    if report:
        await channels.error.write(report)
    await channels.error.close()


async def _outcome(channels: CommandChannels, start: Start, *, structured: bool, report_exit: bool) -> bytes:
    """Run the session; what the error channel is to say of it.

    Every failure becomes a report: a client that is told nothing takes silence for success. One
    that has gone does not hear it, which its next write finds out.
    """
    try:
        sizes = _Sizes(channels.resize) if channels.resize is not None else None
        io = await start(await sizes.first() if sizes is not None else (0, 0))
        try:
            status = await _join(channels, io, sizes)
        finally:
            await io.close()
    except OrlopError as error:
        reason = str(error)
    except OSError as error:
        log.debug("streaming session failed, or lost its client: %s", error)
        reason = f"the streams of the process failed: {error}"
    except Exception:
        log.exception("streaming session failed")
        reason = "an internal error ended the session; the daemon's log says more"
    else:
        if not status.message:
            return _exit(status if report_exit else None, structured=structured)
        reason = status.message
    return _failure(reason) if structured else reason.encode()


async def _join(channels: CommandChannels, io: ProcessIO, sizes: _Sizes | None) -> ExitStatus:
    try:
        async with asyncio.TaskGroup() as group:
            inputs = []
            if channels.stdin is not None:
                inputs.append(group.create_task(_stdin(channels.stdin, io)))
            if sizes is not None:
                inputs.append(group.create_task(_resize(sizes, io)))
            async for stream, data in io.output():
                output = channels.stdout if stream == 1 else channels.stderr
                if output is not None:
                    await output.write(data)
            status = await io.wait()
            for task in inputs:
                task.cancel()
    except BaseExceptionGroup as failures:
        raise first_failure(failures) from failures
    return status


async def _stdin(stdin: Reader, io: ProcessIO) -> None:
    while data := await stdin.read():
        await io.write(data)
    await io.close_stdin()


async def _resize(sizes: _Sizes, io: ProcessIO) -> None:
    while (size := await sizes.next()) is not None:
        await io.resize(*size)


class _Sizes:
    """The sizes that a client tells on its channel, one JSON object after the other."""

    def __init__(self, channel: Reader) -> None:
        self._channel = channel
        self._text = ""
        self._first: Size | None = None

    async def first(self) -> Size:
        """The size to start with, (0, 0) when none comes soon. It is told again by :meth:`next`."""
        try:
            async with asyncio.timeout(FIRST_SIZE_TIME):
                self._first = await self.next()
        except TimeoutError:
            pass
        return self._first or (0, 0)

    async def next(self) -> Size | None:
        """The next size; None at the end of the channel."""
        if (first := self._first) is not None:
            self._first = None
            return first
        while True:
            if (size := self._take()) is not None:
                return size
            if not (data := await self._channel.read()):
                return None
            self._text += data.decode("utf-8", "replace")

    def _take(self) -> Size | None:
        """A size from the text that is here."""
        text, begin = self._text, 0
        try:
            while begin < len(text):
                if text[begin].isspace():
                    begin += 1
                    continue
                value, begin = json.JSONDecoder().raw_decode(text, begin)
                width, height = _size(value)
                if width and height:
                    return width, height
        except (ValueError, RecursionError):
            # A value that is not whole yet, or never will be.
            if len(text) - begin > MAX_RESIZE_TEXT:
                begin = len(text)
        finally:
            self._text = text[begin:]
        return None


def _size(value: object) -> tuple[int, int]:
    if not isinstance(value, dict):
        return 0, 0
    width, height = value.get("Width", value.get("width")), value.get("Height", value.get("height"))
    if not (isinstance(width, int) and isinstance(height, int)):
        return 0, 0
    if not (0 < width < 65536 and 0 < height < 65536):
        return 0, 0
    return width, height


def _exit(status: ExitStatus | None, *, structured: bool) -> bytes:
    """The report of a process that ran; ``None`` for a session that ends without an exit code."""
    if status is None or status.code == 0:
        return json.dumps({"metadata": {}, "status": "Success"}).encode() if structured else b""
    message = f"command terminated with non-zero exit code: exit status {status.code}"
    if not structured:
        return message.encode()
    return json.dumps(
        {
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": message,
            "details": {"causes": [{"reason": "ExitCode", "message": str(status.code)}]},
        }
    ).encode()


def _failure(message: str) -> bytes:
    return json.dumps(
        {
            "metadata": {},
            "status": "Failure",
            "reason": "InternalError",
            "message": message,
            "details": {"causes": [{"message": message}]},
            "code": 500,
        }
    ).encode()
