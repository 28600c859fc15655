"""Ready VMs for the next pods.

A claim takes a clone that already runs, and resizes it if its shape is another. What was asked
for is remembered: clones are kept in the shapes that recent pods had, as many of each as
its share of them, and as many as came at once not long ago, within bounds. New ones are made in the
background, on processors that nobody uses, and never while a pod is being started, for which the
processor is needed more. When the host runs short of memory the pool gives itself up, clone by clone, and
comes back when there is memory again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from orlop.config import PoolConfig
from orlop.errors import NotUndone, OrlopError
from orlop.host import scheduling, tasks
from orlop.host.tasks import together
from orlop.hypervisor.base import MachineShape
from orlop.sandbox.vm.clone import Clone, Cloner
from orlop.sandbox.vm.demand import Bursts, Demand
from orlop.sandbox.vm.gate import Gate
from orlop.sandbox.vm.pressure import memory_pressure

log = logging.getLogger(__name__)

MIB = 1 << 20
_QUIET = 1.0
_NICE = 10
_CHECK_EVERY = 5.0
_RETRY_AFTER = 15.0


class Pool:
    """Keeps clones ready. :meth:`open` starts it, :meth:`close` ends it and all that it holds.

    While a step is under way at the ``gate`` no clone is made, nor just after it.
    """

    def __init__(
        self,
        config: PoolConfig,
        cloner: Cloner,
        default: MachineShape,
        gate: Gate,
        *,
        pressure: Callable[[], str] = memory_pressure,
    ) -> None:
        self._config = config
        self._cloner = cloner
        self._default = default
        self._pressure = pressure
        self._demand = Demand()
        self._ready: dict[Clone, int] = {}
        self._watchers: dict[Clone, asyncio.Task[None]] = {}
        self._bursts = Bursts()
        self._gate = gate
        self._wake = asyncio.Event()
        gate.on_end = self._wake.set
        self._tasks = tasks.Tasks()
        self.reason = ""
        """Why the pool is not full, for people."""

    @property
    def size(self) -> int:
        """Clones ready now."""
        return len(self._ready)

    @property
    def memory(self) -> int:
        """Bytes of host memory (PSS) that the ready clones took when they were made."""
        return sum(self._ready.values())

    def open(self) -> None:
        """Begin to fill, if the configuration wants a pool."""
        if self._config.size > 0 and self._cloner.templated:
            self._tasks.spawn(self._run(), "the VM pool")

    async def close(self) -> None:
        """Stop filling and end all clones. Idempotent."""
        await tasks.uncancelled(self._close())

    async def _close(self) -> None:
        # Its tasks first, of which one fills it; a watcher that is ending a clone ends it before.
        await self._tasks.close()
        await together(*(self._drop(clone) for clone in list(self._ready)))

    def claim(self, shape: MachineShape) -> Clone | None:
        """A ready clone for a pod of this shape, or None. It is the caller's then.

        One of the very shape if there is one; else one that can grow to it.
        """
        self._demand.note(shape)
        self._bursts.note(time.monotonic())
        self._wake.set()
        best: Clone | None = None
        for clone in self._ready:
            if clone.agent.closed or not _fits(clone.machine.shape, shape):
                continue
            if best is None or _room(clone.machine.shape) > _room(best.machine.shape):
                best = clone
        if best is not None:
            self._forget(best)
        return best

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            delay = _CHECK_EVERY
            try:
                await self._shrink()
                if self._gate.idle and await self._grow():
                    delay = 0.0
            except OrlopError as error:
                self.reason = str(error)
                log.warning("no VM could be made for the pool: %s", error)
                delay = _RETRY_AFTER
            except Exception:
                log.exception("the VM pool stumbled")
                delay = _RETRY_AFTER
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()
                    await asyncio.sleep(_QUIET)

    async def _shrink(self) -> None:
        short = self._pressure()
        if short and self._ready:
            log.info("the VM pool shrinks: %s", short)
            await self._drop(next(iter(self._ready)))
        for clone in self._ready:
            if clone.origin is not None and clone.origin not in self._cloner.templates:
                await self._drop(clone)  # one at a time: a pod may come while the next is made
                break
        wanted = Counter(self._plan())
        for clone in list(self._ready):
            shape = clone.machine.shape
            if wanted[shape]:
                wanted[shape] -= 1
            elif len(self._ready) > self._wanted_size() or _larger(shape, self._cloner.shape):
                await self._drop(clone)  # made for pods that come no more

    async def _grow(self) -> bool:
        """Make what is missing, on as many processors as are free; whether there may be more to do."""
        self.reason = self._pressure()
        if self.reason:
            return False
        wanted = self._plan()
        for clone in self._ready:
            if clone.machine.shape in wanted:
                wanted.remove(clone.machine.shape)
            elif wanted:
                wanted.pop()
        if not wanted:
            return False
        some = wanted[: max(1, scheduling.free_processors())]
        each = self.memory // len(self._ready) if self._ready else 0
        room = self._config.max_memory_mib * MIB - self.memory
        while some and each * len(some) > room:
            some.pop()
        if not some:
            self.reason = f"vm.pool.max_memory_mib is {self._config.max_memory_mib}"
            return False
        await together(*(self._add(shape) for shape in some))
        return True

    def _wanted_size(self) -> int:
        """As many as the configuration says, or as came at once lately, up to its bound."""
        least = self._config.size
        return max(least, min(self._bursts.expected(time.monotonic()), self._config.max_size))

    def _plan(self) -> list[MachineShape]:
        return self._demand.plan(self._wanted_size(), self._cloner.attainable(self._default))

    async def _add(self, shape: MachineShape) -> None:
        clone = await self._cloner.make()
        try:
            clone.be_nice(_NICE)
            await self._cloner.warm_up(clone)
            if _fits(clone.machine.shape, shape):
                await clone.resize(shape)
            clone.be_nice(0)
            use = await clone.machine.memory()
        except BaseException:
            await tasks.roll_back(f"VM {clone.id} of the pool", self._end(clone))
            raise
        self._ready[clone] = use.pss
        self._watchers[clone] = self._tasks.spawn(self._watch(clone), f"VM {clone.id} of the pool")

    async def _watch(self, clone: Clone) -> None:
        reason = await clone.wait()
        if clone in self._ready:
            log.warning("VM %s of the pool has ended: %s", clone.id, reason)
            del self._ready[clone]
            self._watchers.pop(clone, None)
            await tasks.uncancelled(self._end(clone))
            self._wake.set()

    def _forget(self, clone: Clone) -> None:
        self._ready.pop(clone, None)
        watcher = self._watchers.pop(clone, None)
        if watcher is not None:
            watcher.cancel()

    async def _drop(self, clone: Clone) -> None:
        self._forget(clone)
        await tasks.uncancelled(self._end(clone))

    async def _end(self, clone: Clone) -> None:
        undo = tasks.Undo(f"VM {clone.id} of the pool")
        await undo.step("its agent", clone.agent.close("the pool lets it go"))
        await undo.step("all else", self._cloner.discard(clone.directory))
        try:
            undo.finish()
        except NotUndone as error:
            log.warning("%s", error)


def _fits(have: MachineShape, wanted: MachineShape) -> bool:
    return have.memory_mib <= wanted.memory_mib and have.vcpus <= wanted.vcpus


def _larger(have: MachineShape, other: MachineShape) -> bool:
    return have != other and _fits(other, have)


def _room(shape: MachineShape) -> tuple[int, int]:
    return shape.memory_mib, shape.vcpus
