"""One pod's life through containerd with our shim, but without a VM: what the way there takes by itself.

    python -m bench.shim_alone --rounds 10 --containerd 1.7

The command, the keeper and the daemon's side of the shim are the real ones; pods are in memory, where nothing
takes time. What is printed is Markdown: medians in milliseconds with the least.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conformance import images, tools
from tests.doors.containerd import RELEASES, containerd
from tests.unit.pods_double import DoubleSandbox, World, make_service

from bench import lifecycle
from bench.client import Client
from orlop.shim.door import ShimDoor

SETTLE = 1.0
HANDLER = "orlop"


async def serve(state: Path) -> None:
    """Be the daemon's side for pods in memory, until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    # In the place of a VM: containerd looks at the process of a sandbox, and at its namespaces.
    argv = ("unshare", "--ipc", "--uts", "--net", "--mount", "sleep", "infinity")
    standing = await asyncio.create_subprocess_exec(*argv)
    DoubleSandbox.info = property(lambda _self: {"pid": standing.pid})  # type: ignore[method-assign,assignment]
    pods, _ = make_service(state, World())
    await pods.open()
    door = ShimDoor(state, pods)
    try:
        await door.start()
        sys.stdout.write("up\n")
        sys.stdout.flush()
        await ended.wait()
    finally:
        await door.stop()
        await pods.close()
        with suppress(ProcessLookupError):
            standing.kill()
        await standing.wait()


@contextmanager
def served() -> Iterator[Path]:
    """The scratch directory of such a daemon, which runs until the block ends."""
    with tempfile.TemporaryDirectory(prefix="orlop-alone-") as name:
        state = Path(name, "state")
        state.mkdir()
        argv = [sys.executable, "-m", "bench.shim_alone", "--serve", os.fspath(state)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as daemon:
            try:
                assert daemon.stdout is not None
                if daemon.stdout.readline() != b"up\n":
                    raise RuntimeError("the daemon's side of the shim does not start")
                yield Path(name)
            finally:
                daemon.terminate()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.shim_alone", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--containerd", choices=tuple(RELEASES), default="1.7")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve))
        return
    found: dict[str, list[float]] = defaultdict(list)
    with (
        images.serve(images.storage(), f"127.0.0.1:{tools.free_port()}") as registry,
        served() as scratch,
        tempfile.TemporaryDirectory(prefix="orlop-ctr-") as name,
        containerd(Path(name), options.containerd, scratch / "state", registry) as theirs,
    ):
        client = Client(os.fspath(theirs.socket))
        try:
            lifecycle.pull(client)
            for number in range(options.rounds + 1):
                logs = scratch / f"logs-{number}"
                logs.mkdir()
                time.sleep(SETTLE)
                life = lifecycle.whole_life(client, HANDLER, f"alone-{number}", os.fspath(logs))
                for call, milliseconds in life.items() if number else ():
                    found[call].append(milliseconds)
        finally:
            client.close()
            theirs.remove_pods()
    print("| call | without a VM |\n|---|---|")
    for call, times in found.items():
        print(f"| {call} | {statistics.median(times):.0f} / {min(times):.0f} |")


if __name__ == "__main__":
    main()
