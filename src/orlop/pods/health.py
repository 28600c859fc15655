"""Health: a command that runs in a container again and again, and what its exits say of the container.

Who makes a container wishes for it in an annotation, ``health.orlop.io/check``, as CRI has no word for it: a
kubelet has probes of its own, and its containers do without. The wish is an object in JSON,
``{"test": ["CMD-SHELL", "wget -q localhost"], "interval": 30000000000}``, with ``timeout``, ``start_period``
(all in nanoseconds) and ``retries``. What it leaves out the image says, and else :data:`DEFAULT`; ``{}`` is
the image's check as it is.

The daemon asks, so that health is known whoever is there to look. Whoever watches a container for its exit
has it checked as well, and both end together. What was found is in the journal: a daemon that was restarted
goes on with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Annotated

import msgspec

from orlop.errors import (
    CannotRun,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OrlopError,
)
from orlop.images.model import HealthCheck
from orlop.pods.execs import Execs
from orlop.pods.joint import JointCalls
from orlop.pods.node import Node, now
from orlop.pods.ports import ImageConfigLike
from orlop.pods.records import (
    ContainerRecord,
    EventKind,
    HealthResult,
    HealthState,
    HealthStatus,
)
from orlop.value import UNREADABLE, Value

log = logging.getLogger(__name__)

ANNOTATION = "health.orlop.io/check"

SECOND = 1_000_000_000
DEFAULT = HealthCheck(interval=30 * SECOND, timeout=30 * SECOND, retries=3)

SHORTEST = SECOND
"""The shortest interval and the shortest timeout (ns): an image must not keep the daemon busy."""

KEPT_RESULTS = 5
KEPT_OUTPUT = 512
"""Characters of what a check wrote that are kept: its end."""

MAX_TEST = 32 << 10

NO_PROGRAM = 127
FAILED = -1
"""The exit code of a check that did not come to one."""

_Time = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class HealthWish(Value, frozen=True, forbid_unknown_fields=True):
    """What the annotation holds. With an ``interval`` of 0 it is checked only when somebody asks."""

    test: Annotated[tuple[str, ...], msgspec.Meta(max_length=256)] = ()
    interval: _Time | None = None
    timeout: _Time | None = None
    start_period: _Time | None = None
    retries: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None


def wished(annotations: Mapping[str, str], image: ImageConfigLike) -> HealthCheck | None:
    """How a container is checked, None for not at all. Raises InvalidArgument."""
    text = annotations.get(ANNOTATION)
    if text is None:
        return None
    try:
        wish = msgspec.json.decode(text, type=HealthWish)
    except UNREADABLE as error:
        raise InvalidArgument(f"the annotation {ANNOTATION} cannot be understood: {error}") from error
    own = image.healthcheck or HealthCheck()
    test = wish.test or own.test
    if not test or test[0] == "NONE":
        return None
    if not _runs(test):
        if not wish.test:
            log.info("an image's health check is left out: it begins with %.40r, not with CMD", test[0])
            return None
        raise InvalidArgument(
            f"the annotation {ANNOTATION} says {test[0][:40]!r}: "
            "a test is CMD and words, CMD-SHELL and one text, or NONE"
        )
    return HealthCheck(
        test=test,
        interval=_time("interval", wish.interval, own.interval, DEFAULT.interval),
        timeout=_time("timeout", wish.timeout, own.timeout, DEFAULT.timeout),
        start_period=own.start_period if wish.start_period is None else wish.start_period,
        retries=wish.retries or own.retries or DEFAULT.retries,
    )


def _runs(test: tuple[str, ...]) -> bool:
    if sum(map(len, test)) > MAX_TEST or any("\0" in word for word in test):
        return False
    return len(test) > 1 if test[0] == "CMD" else test[0] == "CMD-SHELL" and len(test) == 2


def _time(what: str, wish: int | None, image: int, default: int) -> int:
    if wish is None:
        return max(image or default, SHORTEST)
    if wish < SHORTEST and not (what == "interval" and wish == 0):
        raise InvalidArgument(f"the annotation {ANNOTATION}: the {what} must be a second or more")
    return wish


def command(check: HealthCheck) -> tuple[str, ...]:
    """What is run."""
    return check.test[1:] if check.test[0] == "CMD" else ("/bin/sh", "-c", check.test[1])


def judged(record: ContainerRecord, check: HealthCheck, result: HealthResult) -> HealthState:
    """What a container's health is after one more result."""
    before = record.health or HealthState()
    results = (*before.results, result)[-KEPT_RESULTS:]
    if result.exit_code == 0:
        return HealthState(status=HealthStatus.HEALTHY, results=results)
    starting = before.status is HealthStatus.STARTING
    if starting and result.started_at < record.started_at + check.start_period:
        return HealthState(status=before.status, results=results)
    failures = before.failures + 1
    status = HealthStatus.UNHEALTHY if failures >= check.retries else before.status
    return HealthState(status=status, failures=failures, results=results)


class Health:
    """Runs the checks of containers, of each one at a time."""

    def __init__(self, node: Node, execs: Execs) -> None:
        self._node = node
        self._execs = execs
        self._checks: JointCalls[HealthResult] = JointCalls(node.tasks)

    async def keep(self, container_id: str) -> None:
        """Check a running container until this is ended; at once, and then one interval after each check."""
        while (record := self._node.ledger.find_container(container_id)) is not None:
            check = record.health_check
            if check is None or not check.interval:
                return
            await asyncio.sleep(_due(record, check))
            try:
                await self.check(container_id)
            except (FailedPrecondition, NotFound) as error:  # it stands still, or has just ended
                log.debug("container %s is not checked: %s", container_id[:12], error)
                await asyncio.sleep(check.interval / SECOND)
            except OrlopError as error:
                log.info("the health of container %s is not known: %s", container_id[:12], error)
                await asyncio.sleep(check.interval / SECOND)

    async def check(self, ref: str) -> HealthResult:
        """Check a running container, or hear what the check under way finds. Raises FailedPrecondition."""
        await self._node.known_of(ref)
        record, _ = self._node.running(ref)
        check = record.health_check
        if check is None:
            raise FailedPrecondition(
                f"container {record.name} ({record.id[:12]}) has no health check: "
                "neither its image names one, nor did who made it"
            )
        return await self._checks.run(record.id, None, lambda: self._check(record.id, check))

    async def _check(self, container_id: str, check: HealthCheck) -> HealthResult:
        begun = now()
        code, words = await self._outcome(container_id, check)
        result = HealthResult(
            started_at=begun, finished_at=max(begun, now()), exit_code=code, output=words[-KEPT_OUTPUT:]
        )
        record = self._node.ledger.find_container(container_id)
        if record is None or not record.running:
            raise FailedPrecondition(f"container {container_id[:12]} ended while it was checked")
        state = judged(record, check, result)
        changed = record.health is None or state.status is not record.health.status
        await self._node.ledger.note_container(container_id, health=state)
        if changed:
            self._node.events.publish(EventKind.HEALTH, container_id, record.pod_id)
        return result

    async def _outcome(self, container_id: str, check: HealthCheck) -> tuple[int, str]:
        """An exit code, and what was written."""
        seconds = check.timeout / SECOND
        try:
            # Four bytes make a character, at most.
            result = await self._execs.exec_sync(container_id, command(check), seconds, keep=4 * KEPT_OUTPUT)
        except DeadlineExceeded:
            return FAILED, f"the check did not end within {seconds:g} s and was killed"
        except CannotRun as error:
            return NO_PROGRAM, str(error)
        return result.exit_code, (result.stdout + result.stderr).decode(errors="replace")


def _due(record: ContainerRecord, check: HealthCheck) -> float:
    """Seconds until the next check, by what an earlier daemon has seen as well."""
    if record.health is None or not record.health.results:
        return 0.0
    passed = now() - record.health.results[-1].finished_at
    # Not by a clock that was set back.
    return min(max(check.interval - passed, 0), check.interval) / SECOND
