"""Several templates, each for a while: VMs of one have in common what its kernel drew when it booted.

That is where the kernel lies in memory (KASLR) and its early secrets. Who learned them in one VM knows them
for all that come from the same template; see docs/security.md. A template costs the memory of its guest on
the host and a boot, so there is one for ever unless the configuration says otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from orlop.config import VmConfig
from orlop.errors import OrlopError
from orlop.sandbox.vm.clone import Cloner
from orlop.sandbox.vm.gate import Gate
from orlop.sandbox.vm.pressure import memory_pressure

log = logging.getLogger(__name__)

_LOOK_AGAIN = 5.0
_RETRY_AFTER = 60.0
_LONGEST = 60.0


def wanted(cloner: Cloner, config: VmConfig) -> bool:
    """Whether there is anything to :func:`keep`."""
    return cloner.templated and (config.templates > 1 or config.template_lifetime > 0)


async def keep(
    cloner: Cloner, config: VmConfig, gate: Gate, *, pressure: Callable[[], str] = memory_pressure
) -> None:
    """Keep as many templates as ``config`` wants, none longer than it says. Never returns.

    A template is made only while no pod starts and memory is not short, and the one that it replaces
    serves until then.
    """
    while True:
        delay = _LOOK_AGAIN
        if gate.idle and not pressure():
            try:
                delay = await _step(cloner, config)
            except OrlopError as error:
                log.warning("no further VM template could be made: %s", error)
                delay = _RETRY_AFTER
            except Exception:
                log.exception("the rotation of VM templates stumbled")
                delay = _RETRY_AFTER
        await asyncio.sleep(delay)


async def _step(cloner: Cloner, config: VmConfig) -> float:
    """Make one template if one is missing or has served its time; returns when to look again, in seconds."""
    now = time.time()
    due = (
        [one.made + config.template_lifetime for one in cloner.templates] if config.template_lifetime else []
    )
    past = [one for one, end in zip(cloner.templates, due, strict=False) if end <= now]
    if len(cloner.templates) - len(past) < config.templates:
        await cloner.add_template()
    for one in past:
        log.info("VMs start from the template %s no more", one.directory.name)
        await cloner.retire_template(one)
        return 0.0
    missing = len(cloner.templates) < config.templates
    return 0.0 if missing else min(_LONGEST, max(_LOOK_AGAIN, min(due, default=now + _LONGEST) - now))
