"""Whether a guest's agent answers at all: the least that shows that a restored machine runs."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path

from orlop.errors import DeadlineExceeded
from orlop.wire.framing import NONCE_SIZE, Kind, frame, preamble
from orlop.wire.hello import Hello, pack_hello

_AGAIN = 2.0


async def answered(socket: Path, timeout: float) -> None:
    """Return when the agent behind ``socket`` has said something. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                while True:
                    nonce = secrets.token_hex(NONCE_SIZE // 2).encode()
                    writer.write(preamble(nonce) + frame(Kind.HELLO, payload=pack_hello(Hello())))
                    # A greeting that came before the guest looked at its port is lost.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_AGAIN):
                            if await reader.read(1):
                                return
            finally:
                writer.close()
    except TimeoutError as error:
        raise DeadlineExceeded(f"the agent said nothing within {timeout:g} seconds") from error
