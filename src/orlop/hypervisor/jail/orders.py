"""What the daemon tells the program that enters a jail."""

from __future__ import annotations

from typing import TypedDict


class Orders(TypedDict):
    """Plain values, passed by marshal: both sides run under the same interpreter."""

    tree: str
    """The directory that becomes /, with its mount points: read-only."""
    binds: list[tuple[str, str]]
    """Files and directories of the host, and where they appear in the tree: read-only."""
    devices: list[str]
    """Names below /dev."""
    owner: int
    """The host's uid and gid that are root inside."""
    capabilities: list[int]
    limits: list[tuple[int, int]]
    """Numbers of resource limits (getrlimit(2)) and their values, soft and hard."""
    program: bytes
    """The system-call filter; empty for none."""
    unasked_huge_pages: bool
    """Whether the kernel may give it transparent huge pages that it did not ask for."""
    argv: list[str]
    environment: dict[str, str]
    door: int
    """A socket: a byte goes out when the user namespace waits for its mappings, and one comes in reply."""
