"""Notice a guest that hangs: its machine runs, and its agent says nothing any more.

An agent that was silent for a while is asked for a word. It may take its time, by the machine's own
reckoning: what the machine waited for a processor, or was stopped by hand, does not count, so that
a busy host ends no pod that is well.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from orlop.errors import OrlopError
from orlop.host import scheduling, tasks
from orlop.hypervisor.base import Machine
from orlop.sandbox.vm.agent import AgentClient
from orlop.wire.messages import Ping

QUIET = 30.0
"""Seconds without a word after which an agent is asked."""

PATIENCE = 90.0
"""Seconds of the machine's own time that it may take to answer."""

_LIMIT = 10.0
"""As many times patience at most, however busy the host is; a machine that was stopped may stay so."""

_SLICES = 18


async def lost(
    machine: Machine, agent: AgentClient, *, quiet: float = QUIET, patience: float = PATIENCE
) -> str:
    """Return when the agent is silent for good, with the reason in one sentence."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(max(0.0, agent.heard + quiet - loop.time()))
        if loop.time() < agent.heard + quiet:
            continue
        if not await _answers(machine, agent, patience):
            return f"the guest hangs: its agent has said nothing for {loop.time() - agent.heard:.0f} seconds"


async def _answers(machine: Machine, agent: AgentClient, patience: float) -> bool:
    """Ask for a word; whether there was any, be it another than the answer."""
    before = agent.heard
    each = patience / _SLICES
    used = spent = 0.0
    waited = scheduling.waited(machine.pid)
    async with tasks.beside(_ask(agent, patience * _LIMIT), f"ping {agent.name}") as asking:
        while used < patience and spent < patience * _LIMIT:
            await asyncio.wait((asking,), timeout=each)
            if agent.heard > before or agent.closed:
                return True
            if asking.done():
                await asyncio.sleep(each)
            now = scheduling.waited(machine.pid)
            if await machine.paused():
                spent = used = 0.0
            else:
                # A slice counts as one, however late this process was itself.
                spent += each
                used += max(0.0, each - (now - waited))
            waited = now
    return agent.heard > before or agent.closed


async def _ask(agent: AgentClient, timeout: float) -> None:
    with suppress(OrlopError):
        await agent.call(Ping(), timeout)
