"""Orlop beside its peers: ``python -m bench --help``. Needs root; takes minutes."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

import grpc
from tests.conformance import images, tools

from bench import lifecycle, systems, usage
from bench.client import Caller
from bench.report import Burst, Report, Scale, can_plot
from bench.words import reason, say

# What a system that cannot run here raises; the others are measured all the same.
FAILURES = (RuntimeError, OSError, tools.ToolError, grpc.RpcError)


@contextmanager
def serving(
    report: Report, chosen: list[systems.System], scratch: Path
) -> Iterator[list[tuple[systems.System, Caller]]]:
    """All systems up at once, each with the image and after one pod's life; those that fail are left out."""
    with ExitStack() as stack:
        clients: list[tuple[systems.System, Caller]] = []
        for number, system in enumerate(chosen):
            try:
                conf = images.registries_conf(systems.REGISTRY)
                running = stack.enter_context(
                    systems.running(system, scratch / system.name, number, systems.REGISTRY, conf)
                )
                client = running.connect()
                stack.callback(client.close)
                lifecycle.pull(client)
                lifecycle.whole_life(client, system.handler, "warm", f"{scratch}/logs")
            except FAILURES as error:
                report.missing[system.name] = reason(error)
                say(f"{system.name}: {report.missing[system.name]}")
                continue
            clients.append((system, client))
        yield clients


def interleaved(report: Report, chosen: list[systems.System], scratch: Path, rounds: int) -> None:
    """Each round runs one pod's life on every one of the systems."""
    with serving(report, chosen, scratch) as clients:
        for round_number in range(rounds):
            for system, client in clients:
                name = f"r{round_number}"
                try:
                    times = lifecycle.whole_life(client, system.handler, name, f"{scratch}/logs")
                except FAILURES as error:
                    report.failed.setdefault(system.name, []).append(reason(error))
                    say(f"{system.name}: {report.failed[system.name][-1]}")
                    continue
                report.add(system.name, times)
                # What it still does after its round is not the next one's to bear.
                time.sleep(system.settle)
            say(f"round {round_number + 1} of {rounds}")


def bursts(
    report: Report, chosen: list[systems.System], scratch: Path, counts: list[int], rounds: int
) -> None:
    """Each round asks every system for as many pods as ``counts`` say, at one moment."""
    with serving(report, chosen, scratch / "bursts") as clients:
        for round_number in range(rounds):
            for count, (system, client) in product(counts, clients):
                prefix = f"b{round_number}x{count}"
                try:
                    pods, _, times = lifecycle.start_many(
                        client, system.handler, prefix, f"{scratch}/logs", count, count
                    )
                    lifecycle.end_many(client, pods, count)
                except FAILURES as error:
                    report.failed.setdefault(system.name, []).append(reason(error))
                    say(f"{system.name}: {report.failed[system.name][-1]}")
                    continue
                ready = [one["ready"] for one in times]
                report.bursts.setdefault(system.name, []).append(Burst(count, ready))
                time.sleep(system.settle)
            say(f"round {round_number + 1} of {rounds} of bursts")


def scaled(report: Report, system: systems.System, scratch: Path, counts: list[int], parallel: int) -> None:
    """One system alone: its daemon's memory when idle, then 1, 2, 5 … pods at once."""
    conf = images.registries_conf(systems.REGISTRY)
    before = usage.processes()
    directory = scratch / f"scale-{parallel}-{system.name}"
    with systems.running(system, directory, 9, systems.REGISTRY, conf) as running:
        client = running.connect()
        lifecycle.pull(client)
        lifecycle.whole_life(client, system.handler, "warm", f"{scratch}/logs")
        time.sleep(20)
        idle = usage.measure(running.pid, before)
        report.daemon_idle_mib[system.name] = idle.daemon_mib
        for count in counts:
            report.scale.setdefault(system.name, []).append(
                one_scale(client, running, before, idle, f"{scratch}/logs", count, parallel)
            )
            say(f"{system.name}: {count} pods, {parallel} at a time: done")
        client.close()


def one_scale(
    client: Caller,
    running: systems.Running,
    before: set[int],
    idle: usage.Usage,
    logs: str,
    count: int,
    parallel: int,
) -> Scale:
    """Start ``count`` pods, look at memory and idle cost, end them."""
    handler = running.system.handler
    pods, seconds, times = lifecycle.start_many(
        client, handler, f"s{count}p{parallel}", logs, count, parallel
    )
    try:
        # A pool refills after the last claim; what it makes is not of these pods.
        time.sleep(10)
        loaded = usage.measure(running.pid, before)
        watched = 20.0
        time.sleep(watched)
        later = usage.measure(running.pid, before)
    finally:
        stop = lifecycle.end_many(client, pods, parallel)
    time.sleep(3)
    return Scale(
        pods=count,
        parallel=parallel,
        start_seconds=seconds,
        stop_seconds=stop,
        ready_ms=[one["ready"] for one in times],
        mib_per_pod=(loaded.others_mib - idle.others_mib) / count,
        daemon_mib=loaded.daemon_mib,
        idle_percent_of_core_per_pod=max(0.0, later.seconds - loaded.seconds) / watched / count * 100,
    )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")] if text else []


def main() -> int:
    """Run what the options choose and print the table."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--systems", default="", help="comma-separated; default: all")
    parser.add_argument("--before", type=Path, help="another checkout of Orlop, measured beside this one")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--scale", default="", help="numbers of pods at once, such as 1,2,5,10,20,40")
    parser.add_argument("--bursts", default="", help="numbers of pods asked for at one moment: 1,10,30")
    parser.add_argument("--burst-rounds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=1, help="pods started at a time with --scale")
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: network namespaces, mounts and virtual machines are made")
    known = systems.known(options.before)
    names = options.systems.split(",") if options.systems else list(known)
    unknown = set(names) - set(known)
    if unknown:
        parser.error(f"unknown systems: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [known[name] for name in names]
    if not can_plot():
        say("no picture will be drawn: matplotlib is not installed (.venv/bin/pip install -e '.[bench]')")
    # So that the daemons end as well when the benchmark is told to.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report()
    scratch = Path(tempfile.mkdtemp(prefix="orlop-bench-", dir="/var/tmp"))
    try:
        with images.serve(images.storage(), systems.REGISTRY):
            if options.rounds:
                interleaved(report, chosen, scratch, options.rounds)
            if options.bursts:
                bursts(report, chosen, scratch, _numbers(options.bursts), options.burst_rounds)
            counts = _numbers(options.scale)
            for system in chosen if counts else []:
                if system.name not in report.missing:
                    try:
                        scaled(report, system, scratch, counts, options.parallel)
                    except FAILURES as error:
                        report.missing[system.name] = reason(error)
                        say(f"{system.name}: {report.missing[system.name]}")
    finally:
        report.save(options.out)
        shutil.rmtree(scratch, ignore_errors=True)
    print(report.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
