"""``orlop version``."""

from __future__ import annotations

from orlop.client import session
from orlop.cri.api import runtime_v1_pb2 as pb


async def daemon_version(socket: str) -> str:
    """One line about the running daemon."""
    async with session.connect(socket) as client:
        answer = await client.runtime.version(pb.VersionRequest())
    return f"daemon {answer.runtime_name} {answer.runtime_version}, CRI {answer.runtime_api_version}"
