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

from orlop.cri.streaming.channels import Channels, Reader
from orlop.errors import OrlopError
from orlop.sandbox.base import ProcessIO
from orlop.sandbox.spec import ExitStatus

log = logging.getLogger(__name__)

MAX_RESIZE_TEXT = 4096
STATUS_PROTOCOLS = frozenset({"v4.channel.k8s.io", "v5.channel.k8s.io"})


async def serve(
    channels: Channels, start: Callable[[], Awaitable[ProcessIO]], *, protocol: str, report_exit: bool
) -> None:
    """Run one session to its end and report it on the error channel.

    ``start`` begins the exec or the attach; ``report_exit`` is true for an exec, whose exit code
    the client wants. Cancelled when the client goes away, which closes the process's streams.
    """
    structured = protocol in STATUS_PROTOCOLS
    try:
        io = await start()
        try:
            status = await _join(channels, io)
        finally:
            await io.close()
    except OrlopError as error:
        report = _failure(str(error)) if structured else str(error).encode()
    except OSError as error:
        log.debug("streaming session lost its client: %s", error)
        return
    else:
        report = _exit(status, structured=structured) if report_exit else _exit(None, structured=structured)
    for output in (channels.stdout, channels.stderr):
        if output is not None:
            await output.close()
    if report:
        await channels.error.write(report)
    await channels.error.close()


async def _join(channels: Channels, io: ProcessIO) -> ExitStatus:
    async with asyncio.TaskGroup() as group:
        inputs = []
        if channels.stdin is not None:
            inputs.append(group.create_task(_stdin(channels.stdin, io)))
        if channels.resize is not None:
            inputs.append(group.create_task(_resize(channels.resize, io)))
        async for stream, data in io.output():
            output = channels.stdout if stream == 1 else channels.stderr
            if output is not None:
                await output.write(data)
        status = await io.wait()
        for task in inputs:
            task.cancel()
    return status


async def _stdin(stdin: Reader, io: ProcessIO) -> None:
    while data := await stdin.read():
        await io.write(data)
    await io.close_stdin()


async def _resize(resize: Reader, io: ProcessIO) -> None:
    decoder = json.JSONDecoder()
    text = ""
    while data := await resize.read():
        text = (text + data.decode("utf-8", "replace")).lstrip()
        while text:
            try:
                size, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                break
            text = text[end:].lstrip()
            width, height = _size(size)
            if width and height:
                await io.resize(width, height)
        if len(text) > MAX_RESIZE_TEXT:
            text = ""


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
