"""CNI plug-ins that are served on a Unix socket: no program is started for them.

A network configuration says where: the key ``orlop.socket`` of a plug-in. Other runtimes start the program of
that type, which does the same.

The caller writes the variables ``CNI_...`` as ``/proc/PID/environ`` has them, a zero byte after each, one
more zero byte, then what the plug-in would read; it closes its side. It reads the exit status on a line of
its own, and after it what the plug-in would have written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from orlop.errors import Unavailable
from orlop.host.process import Completed

KEY: Final = "orlop.socket"
_LARGEST: Final = 4 << 20


def encode(variables: Mapping[str, str], document: bytes) -> bytes:
    """What a caller writes."""
    said = "".join(f"{key}={value}\0" for key, value in variables.items() if key.startswith("CNI_"))
    return said.encode() + b"\0" + document


async def ask(path: str, variables: Mapping[str, str], document: bytes, timeout: float) -> Completed:
    """Have the plug-in at ``path`` called. Raises Unavailable when nobody answers within so many seconds."""
    try:
        async with asyncio.timeout(timeout):
            return await _ask(path, encode(variables, document))
    except TimeoutError as error:
        raise Unavailable(f"nobody answered on {path} within {timeout:g} s") from error
    except OSError as error:
        raise Unavailable(
            f"nobody listens on {path} ({error.strerror or error}): is its agent running?"
        ) from error


async def _ask(path: str, said: bytes) -> Completed:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(said)
        writer.write_eof()
        await writer.drain()
        answer = bytearray()
        while chunk := await reader.read(1 << 16):
            answer += chunk
            if len(answer) > _LARGEST:
                raise Unavailable(f"what {path} answers is longer than {_LARGEST} bytes")
    finally:
        writer.close()
    status, whole, output = bytes(answer).partition(b"\n")
    if not whole or not status.isdigit():
        raise Unavailable(f"what {path} answers breaks off")
    return Completed(returncode=int(status), stdout=output, stderr=b"")
