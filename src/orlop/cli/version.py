"""``orlop version``."""

from __future__ import annotations

from typing import Any

from orlop import __version__
from orlop.cli import formats
from orlop.client import session
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import OrlopError


def server(version: pb.VersionResponse) -> dict[str, Any]:
    """What the daemon says of itself, by field."""
    return {
        "Name": version.runtime_name,
        "Version": version.runtime_version,
        "APIVersion": version.runtime_api_version,
    }


async def version_command(socket: str, text: str) -> None:
    """``orlop version``: this command works without a daemon, too."""
    told: dict[str, Any] = {}
    missing = ""
    try:
        async with session.connect(socket) as client:
            told = server(await client.runtime.version(pb.VersionRequest()))
    except OrlopError as error:
        missing = str(error)
    if text:
        formats.show_document(text, {"Client": {"Version": __version__}, "Server": told})
        return
    print(f"orlop {__version__}")
    there = "daemon {Name} {Version}, CRI {APIVersion}".format(**told) if told else ""
    print(there or f"daemon: {missing}")
