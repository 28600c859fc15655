"""Sandboxes that containerd has made by the shim itself: each is a VM, and beside it there is nothing.

A sandbox is described first, and its VM is made when it is started: what containerd gives up in between
(it may have no image that it wants besides) has cost a small file. From then on it is a task like the
sandbox container of a kubelet's pod, in whose place it is; so containers find it, and so does a later daemon.
"""

from __future__ import annotations

import time

import msgspec

from orlop.errors import AlreadyExists, FailedPrecondition, NotFound
from orlop.linux.usage import Usage
from orlop.sandbox.spec import ExitStatus, PodSpec
from orlop.shim.expected import ExpectedTask
from orlop.shim.model import Key, LiveTask, TaskRecord
from orlop.shim.tasks import ShimTasks
from orlop.value import Value


class SandboxStanding(Value, frozen=True):
    """How a sandbox stands. ``pid`` is its VM's process on this host, 0 without one. Times are nanoseconds
    since the epoch, 0 for what is still to come."""

    ready: bool = False
    pid: int = 0
    created_at: int = 0
    exited_at: int = 0


class Sandboxes:
    """The verbs of the service for sandboxes."""

    def __init__(self, tasks: ShimTasks) -> None:
        self._tasks = tasks

    async def create(self, key: Key, bundle: str, spec: PodSpec) -> None:
        """Note what a sandbox is to be. Raises AlreadyExists."""
        async with self._tasks.turn(key):
            if self._tasks.find(key) is not None:
                raise AlreadyExists(f"sandbox {key[1]} exists already in namespace {key[0]}")
            known = self._tasks.expected.get(key) or ExpectedTask(namespace=key[0], id=key[1])
            await self._tasks.expected.put(msgspec.structs.replace(known, bundle=bundle, sandbox=spec))

    async def start(self, key: Key) -> tuple[SandboxStanding, PodSpec]:
        """Make its VM, and say what that is. A failure leaves it as it was created. Raises NotFound,
        FailedPrecondition."""
        async with self._tasks.turn(key):
            if self._tasks.find(key) is not None:
                raise FailedPrecondition(f"sandbox {key[1]} cannot be started: it was started already")
            known = self._tasks.expected.get(key)
            if known is None or known.sandbox is None:
                raise _absent(key)
            record = TaskRecord(
                namespace=key[0],
                id=key[1],
                bundle=known.bundle,
                events=known.events,
                sandbox=True,
                by_sandboxer=True,
            )
            task = await self._tasks.maker.sandbox(record, known.sandbox)
            task.first.started = True
            await self._tasks.adopt(task)
        netns = known.sandbox.netns or task.record.netns
        return self._standing(task), msgspec.structs.replace(known.sandbox, netns=netns)

    async def stop(self, key: Key) -> None:
        """End its VM, and let go of its network namespace, which containerd removes next. Idempotent."""
        async with self._tasks.turn(key):
            if (task := self._tasks.find(key)) is not None:
                await self._tasks.stop_sandbox(task)
            elif not self._described(key):
                raise _absent(key)

    async def wait(self, key: Key) -> ExitStatus:
        """Wait for its end."""
        task = await self._started(key)
        await task.first.ended.wait()
        assert task.first.exit is not None
        return task.first.exit

    async def status(self, key: Key) -> SandboxStanding:
        """How it stands."""
        await self._tasks.known()
        if (task := self._tasks.find(key)) is not None:
            return self._standing(task)
        if not self._described(key):
            raise _absent(key)
        return SandboxStanding()

    async def usage(self, key: Key) -> Usage:
        """What all of it uses."""
        await self._started(key)
        return await self._tasks.usage(key)

    async def shut_down(self, key: Key) -> None:
        """Remove it, with its VM if that runs. Idempotent."""
        await self._tasks.clear(key)

    def _standing(self, task: LiveTask) -> SandboxStanding:
        end = task.first.exit
        return SandboxStanding(
            ready=end is None,
            pid=self._tasks.pid(task),
            created_at=self._tasks.created_at(task) or time.time_ns(),
            exited_at=0 if end is None else end.finished_at,
        )

    def _described(self, key: Key) -> bool:
        known = self._tasks.expected.get(key)
        return known is not None and known.sandbox is not None

    async def _started(self, key: Key) -> LiveTask:
        await self._tasks.known()
        task = self._tasks.find(key)
        if task is not None:
            return task
        if self._described(key):
            raise FailedPrecondition(f"sandbox {key[1]} was not started")
        raise _absent(key)


def _absent(key: Key) -> NotFound:
    return NotFound(f"sandbox {key[1]} is not there in namespace {key[0]}")
