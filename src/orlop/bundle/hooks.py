"""Programs of the host that a bundle has run at moments of its container's life.

They are what sets up a network for some callers. Those that belong into the container's own namespaces are
refused elsewhere: they would have to run in the VM.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from orlop.bundle.document import OciHook
from orlop.errors import FailedPrecondition, OrlopError
from orlop.host import process

log = logging.getLogger(__name__)

_LONGEST = 300.0
"""Seconds that one may take which names no time of its own."""


async def must(hooks: Sequence[OciHook], state: Mapping[str, Any]) -> None:
    """Run them one after the other. Raises FailedPrecondition for the first that fails."""
    for hook in hooks:
        await _run(hook, state)


async def may(hooks: Sequence[OciHook], state: Mapping[str, Any]) -> None:
    """Run them all; what goes wrong is logged, as the specification wants it after a start and at the end."""
    for hook in hooks:
        try:
            await _run(hook, state)
        except FailedPrecondition as error:
            log.warning("container %s: %s", state.get("id"), error)


async def _run(hook: OciHook, state: Mapping[str, Any]) -> None:
    environment = dict(pair.split("=", 1) for pair in hook.env or () if "=" in pair)
    try:
        await process.run(
            hook.args or (hook.path,),
            program=hook.path,
            input=json.dumps(state).encode(),
            env=environment,
            cwd=str(state["bundle"]),
            timeout=hook.timeout or _LONGEST,
        )
    except OrlopError as error:
        raise FailedPrecondition(f"error running hook {hook.path}: {error}") from error
