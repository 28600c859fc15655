"""How containers are named in calls."""

from __future__ import annotations

from orlop.errors import InvalidArgument

MAX_ID = 128


def named(container_id: str) -> str:
    """An id, or the start of one, of a bounded length. Raises InvalidArgument."""
    if not container_id or len(container_id) > MAX_ID:
        raise InvalidArgument(f"container_id must have 1 to {MAX_ID} characters, not {len(container_id)}")
    return container_id
