"""Churn pods under faults: ``make soak MINUTES=60 SEED=7``; the last lines say what was wrong.

The run goes in rounds. In each, clients make, use and remove pods while faults are injected, the daemon and
QEMUs are killed, and the disk fills up. Then faults end, all pods are removed, and nothing may be left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from orlop.host.tasks import uncancelled
from tests.conformance import images, tools
from tests.node import BUSYBOX, Node, node
from tests.patience import SLOWNESS
from tests.soak import invariants
from tests.soak.churn import Soak, seed_of

ROOT = Path(__file__).parents[2]
LAYER = Path(__file__).with_name("layer")


class Chaos:
    """Kills daemons and machines, and fills the disk, at moments that the seed says."""

    def __init__(self, soak: Soak, seed: int, every: float, kinds: tuple[str, ...]) -> None:
        self.soak = soak
        self.kinds = kinds
        self._every = every
        self._chance = random.Random(f"{seed} chaos")
        self.done: list[str] = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._chance.uniform(0.3, 1.7) * self._every)
            kind = self._chance.choice(self.kinds)
            self.done.append(f"{time.time():.3f} {kind}")
            self.soak.kills[kind] += 1
            if kind == "daemon":
                await self.restart(signal.SIGKILL)
            elif kind == "stop":
                await self.restart(signal.SIGTERM)
            elif kind == "machine":
                await asyncio.to_thread(self._kill_machine)
            elif kind == "disk":
                await self._fill_disk()
            elif kind == "clock":
                self._turn_clock()

    async def restart(self, number: signal.Signals) -> None:
        """End the daemon and start it again; clients wait meanwhile, calls under way fail.

        Who is cancelled waits for that: a daemon that is about to end looks like one that goes on.
        """
        await uncancelled(self._restart(number))

    async def _restart(self, number: signal.Signals) -> None:
        soak = self.soak
        soak.serving.clear()
        try:
            await asyncio.to_thread(soak.node.stop, number)
            await asyncio.sleep(self._chance.choice((0.0, 0.0, 0.5, 2.0)))
            await start(soak)
        finally:
            soak.serving.set()

    async def _fill_disk(self) -> None:
        """Nothing can be written for a while, by the daemon or by anything that it runs."""
        filler = self.soak.node.scratch / "faults" / "filler"
        try:
            with filler.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    await asyncio.to_thread(file.write, bytes(1 << 20))
            await asyncio.sleep(self._chance.uniform(0.5, 4))
        finally:
            filler.unlink(missing_ok=True)

    def _turn_clock(self) -> None:
        """The daemon's clock jumps, by up to a day either way."""
        jump = self._chance.uniform(-86400, 86400)
        place = self.soak.node.scratch / "faults"
        with contextlib.suppress(OSError):
            (place / "clock.new").write_text(str(jump))
            (place / "clock.new").replace(place / "clock")

    def _kill_machine(self) -> None:
        mark = os.fspath(self.soak.node.scratch)
        machines = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if "qemu-system" in command.split(" ", 1)[0] and mark in command:
                machines.append(int(entry.name))
        if machines:
            self.soak.killed_machines += 1
            try:
                os.kill(self._chance.choice(sorted(machines)), signal.SIGKILL)
            except ProcessLookupError:
                return


async def start(soak: Soak) -> None:
    """Start the daemon. With faults on it may end at once; it is started again, as an init system does."""
    soak.reconnect()
    for attempt in range(5):
        try:
            await asyncio.to_thread(soak.node.start)
            return
        except AssertionError as error:
            if attempt == 4:
                soak.complain(f"the daemon does not start: {str(error)[-1500:]}")
                raise


def faults(one: Node, seed: int, rate: float) -> None:
    """Load the faults into the node's next daemon."""
    place = one.scratch / "faults"
    place.mkdir(exist_ok=True)
    from tests.soak.faults import RATES

    rates = {kind: min(1.0, value * rate) for kind, value in RATES.items()}
    plan = {"place": os.fspath(one.scratch), "seed": seed, "rates": rates}
    os.environ["ORLOP_SOAK_FAULTS"] = json.dumps(plan)
    os.environ["PYTHONPATH"] = os.pathsep.join((os.fspath(LAYER), os.fspath(ROOT)))


def switch(one: Node, on: bool) -> None:
    """Faults happen or not."""
    path = one.scratch / "faults" / "on"
    if on:
        path.touch()
    else:
        path.unlink(missing_ok=True)
        (one.scratch / "faults" / "clock").unlink(missing_ok=True)


async def round_of(soak: Soak, options: argparse.Namespace, number: int, until: float) -> None:
    """Churn, then look that nothing is left."""
    one = soak.node
    goal = min(options.pods, soak.begun + options.round)
    switch(one, True)
    chaos = Chaos(soak, options.seed + number, options.every, tuple(options.chaos.split(",")))
    killing = asyncio.create_task(chaos.run()) if options.every else None
    try:
        await asyncio.gather(*(soak.worker(one_, goal, until) for one_ in range(options.workers)))
    finally:
        if killing is not None:
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
        switch(one, False)
    await quiet(soak, number, chaos)


async def quiet(soak: Soak, number: int, chaos: Chaos) -> None:
    """Without faults: everything can be removed, nothing is left, nothing has grown."""
    one = soak.node
    await asyncio.sleep(0.2)
    if not one.alive():
        if not chaos.done or "daemon" not in chaos.done[-1]:
            soak.complain("the daemon has ended by itself")
        await start(soak)
    for pod in list(soak.pods.values()):
        await soak.leave(pod, random.Random(0))
    await asyncio.to_thread(one.wait_ready)
    await soak.collect()
    grown = invariants.descriptors(one.pid), invariants.memory(one.pid)
    await chaos.restart(signal.SIGTERM)
    await asyncio.to_thread(one.wait_ready)
    fresh = invariants.descriptors(one.pid), invariants.memory(one.pid)
    listed = set(one.crictl("pods", "-q").out.split())
    if listed & soak.gone:
        soak.complain(f"listed again: {listed & soak.gone}")
    # A call that was given up may have made its pod after the last look. With its daemon it has ended.
    await soak.collect()
    if grown[0] > fresh[0] + invariants.MORE_DESCRIPTORS:
        soak.complain(f"the daemon had {grown[0]} files open, and a new one has {fresh[0]}")
    if grown[1] > fresh[1] + invariants.MORE_MEMORY:
        soak.complain(f"the daemon had {grown[1] >> 20} MiB, and a new one has {fresh[1] >> 20}")
    left = one.crictl("pods", "-q").out.split() + one.crictl("ps", "-aq").out.split()
    if left:
        soak.complain(f"still listed: {left}")
    soak.serving.clear()
    await asyncio.to_thread(one.stop)
    for line in await asyncio.to_thread(invariants.wait_for, one.leaks):
        soak.complain(f"left behind: {line}")
    files = await asyncio.to_thread(invariants.files, one)
    if number == 0:
        soak.baseline = files  # type: ignore[attr-defined]
    for path in sorted(files - soak.baseline):  # type: ignore[attr-defined]
        soak.complain(f"left behind: {path}")
    print(
        f"round {number}: {soak.begun} pods begun, {soak.made} made, {soak.calls} calls, "
        f"failed {soak.failed}, slowest {soak.slowest[1]} {soak.slowest[0]:.1f} s, {len(chaos.done)} kills, "
        f"files {grown[0]} (new {fresh[0]}), memory {grown[1] >> 20} MiB (new {fresh[1] >> 20}), "
        f"wrong so far: {len(soak.wrong)}",
        flush=True,
    )
    await start(soak)
    soak.serving.set()


async def churn(one: Node, options: argparse.Namespace) -> Soak:
    """All rounds."""
    handlers = tuple(options.handlers.split(","))
    weights = {"vm": options.vms, "process": 1 - options.vms} if len(handlers) > 1 else {handlers[0]: 1.0}
    soak = Soak(one, options.seed, weights)
    until = time.monotonic() + options.minutes * 60
    number = 0
    await quiet(soak, 0, Chaos(soak, 0, 1, ()))
    while soak.begun < options.pods and time.monotonic() < until:
        number += 1
        await round_of(soak, options, number, until)
    await soak.close()
    return soak


def main() -> int:
    """Run as a program; 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=seed_of, default=seed_of(""))
    parser.add_argument("--pods", type=int, default=1_000_000)
    parser.add_argument("--round", type=int, default=100, help="pods between two looks at what is left")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--vms", type=float, default=0.25, help="the part of the pods that are VMs")
    parser.add_argument("--rate", type=float, default=1.0, help="times the usual rate of faults; 0 for none")
    parser.add_argument(
        "--every", type=float, default=8.0 * SLOWNESS, help="seconds between two kills; 0 for none"
    )
    parser.add_argument("--chaos", default="daemon,daemon,stop,machine,disk,clock")
    parser.add_argument("--disk", type=int, default=2500, help="MiB of the node's disk")
    parser.add_argument("--handlers", default="process,vm")
    parser.add_argument("--keep", type=Path, help="where to keep logs when something is wrong")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Whatever started it in the background, its end leaves nothing behind.
        signal.signal(number, signal.default_int_handler)
    print(f"seed {options.seed}", flush=True)
    begun = time.monotonic()
    pool = {"vm": {"pool": {"size": 1}}}
    with (
        images.serve(images.storage(), f"127.0.0.1:{tools.free_port()}") as registry,
        node(registry, extra=pool, prefix="orlop-soak-", size_mib=options.disk) as one,
    ):
        one.wait_ready()
        one.pull(BUSYBOX)
        for handler in options.handlers.split(","):
            # With the template of VMs there, which takes longer to make than a daemon lives here.
            one.remove_pod(one.run_pod(handler=handler))
        one.stop()
        faults(one, options.seed, options.rate)
        one.start()
        soak = asyncio.run(churn(one, options))
        soak.faults = injected(one)
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            for path in (one.settings.log, one.scratch / "faults" / "faults.log"):
                if path.exists():
                    shutil.copy(path, options.keep)
        tell(soak, options, time.monotonic() - begun)
    return 1 if soak.wrong else 0


def injected(one: Node) -> Counter[str]:
    """The faults that there were, by kind."""
    lines = (one.scratch / "faults" / "faults.log").read_text(errors="replace").splitlines()
    return Counter(line.split()[1] for line in lines if len(line.split()) > 1)


def tell(soak: Soak, options: argparse.Namespace, spent: float) -> None:
    """What came of it, before anything that is still wrong ends the run."""
    print(
        f"seed {options.seed}: {sum(soak.made.values())} pods made ({soak.made}), {soak.calls} calls, "
        f"{spent:.0f} s, {len(soak.wrong)} wrong"
    )
    for name, counted in (("faults", soak.faults), ("kills", soak.kills)):
        each = ", ".join(f"{kind} {number}" for kind, number in sorted(counted.items()))
        print(f"{name}: {counted.total()} ({each})")
    for line in soak.wrong:
        print(f"WRONG: {line}")
    if soak.wrong:
        print(f"again: make soak SEED={options.seed} (the same faults, at other moments)")


if __name__ == "__main__":
    sys.exit(main())
