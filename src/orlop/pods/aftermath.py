"""What the daemon does of itself with containers that have ended, by rules that their makers wished for.

Each is dealt with once at a time, by the first rule that concerns it; what cannot be done is tried again.
"""

from __future__ import annotations

import logging
from typing import Protocol

from orlop.errors import NotFound, OrlopError
from orlop.pods.names import of_container
from orlop.pods.node import Node, reason_of
from orlop.pods.records import ContainerPhase, ContainerRecord

log = logging.getLogger(__name__)

RETRY_INTERVAL = 30.0
"""Seconds between tries to do what could not be done."""


class EndRule(Protocol):
    """What becomes of some of them. ``work`` names it, ``undone`` says that it cannot be done yet."""

    work: str
    undone: str

    def concerns(self, record: ContainerRecord) -> bool:
        """Whether it is for this container, which has ended."""
        ...

    async def carry_out(self, record: ContainerRecord) -> None:
        """Do it. Raises what stands in the way, NotFound when the container has gone."""
        ...


class Aftermath:
    """Carries the rules out; :meth:`run` for as long as the daemon lives."""

    def __init__(self, node: Node, *rules: EndRule) -> None:
        self._node = node
        self._rules = rules
        self._going: set[str] = set()

    async def run(self, interval: float = RETRY_INTERVAL) -> None:
        """Deal with what ended while no daemon was there, then with each at its end; for ever."""
        async for _ in self._node.ends.rounds(interval):
            for record in self._node.ledger.all_containers():
                if record.phase is ContainerPhase.EXITED and record.id not in self._going:
                    self._begin(record)

    def _begin(self, record: ContainerRecord) -> None:
        rule = next((rule for rule in self._rules if rule.concerns(record)), None)
        if rule is not None:
            self._going.add(record.id)
            work = self._carry_out(rule, record)
            self._node.tasks.spawn(work, f"{rule.work} of container {record.id[:12]}")

    async def _carry_out(self, rule: EndRule, record: ContainerRecord) -> None:
        what = f"container {of_container(record)} ({record.id[:12]})"
        try:
            await rule.carry_out(record)
        except (OrlopError, OSError) as error:
            left = self._node.ledger.find_container(record.id)
            if isinstance(error, NotFound) and (left is None or left.phase is not ContainerPhase.EXITED):
                log.debug("%s was removed by somebody else", what)
            else:
                log.warning("%s has ended and %s: %s", what, rule.undone, reason_of(error))
        finally:
            self._going.discard(record.id)
