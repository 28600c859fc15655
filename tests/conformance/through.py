"""critest through a daemon of another make, with runc and with Orlop below it: what such runs have in common.

What fails with runc as well is the set-up's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.conformance import critest, images, tools
from tests.conformance.__main__ import APART
from tests.conformance.critest import Result, Spec
from tests.node import Node, base_config, build_guest, node

BASE = "runc"
"""The run that the others are judged by."""


class Serving(Protocol):
    """The daemon while it serves."""

    @property
    def socket(self) -> Path:
        """Where it serves CRI."""
        ...

    def log_tail(self, lines: int = ...) -> str:
        """The last of what it said, with 0 all."""
        ...


class Run(NamedTuple):
    """A run of the suite: a handler of the daemon's, and as which of ours it is judged.

    ``unserved`` are the names of specs that fail because the daemon itself does nothing for such a handler.
    """

    handler: str
    judged: critest.Handler
    unserved: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peer:
    """A daemon of another make: its ``name``, with its release, and its ``runs``.

    ``make`` gets its programs, ``serve`` starts it for a run, in a directory, beside an orlopd, with a
    registry. ``inside`` is the Python program, with its options, that makes one run; the run's name comes
    last. ``least_passed`` specs pass in each: fewer mean that something kept them from running.
    """

    name: str
    release: str
    runs: Mapping[str, Run]
    make: Callable[[], object]
    serve: Callable[[str, Path, Node, str], AbstractContextManager[Serving]]
    inside: Sequence[str]
    least_passed: int


def add_options(parser: argparse.ArgumentParser, report: str) -> None:
    """What the command lines have in common."""
    parser.add_argument("--focus", default="", help="only the specs whose name matches this expression")
    parser.add_argument("--report", type=Path, default=Path(report))
    parser.add_argument("--minutes", type=int, default=40, help="bound of one run")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)


def _run(peer: Peer, name: str, options: argparse.Namespace) -> Result:
    """One run, on daemons of its own."""
    handler, judged, _ = peer.runs[name]
    started = time.monotonic()
    with (
        images.serve(images.storage(), f"127.0.0.1:{tools.free_port()}") as registry,
        tempfile.TemporaryDirectory(prefix="orlop-peer-") as place,
        node(registry, prefix="orlop-ct-") as one,
        peer.serve(name, Path(place), one, registry) as serving,
    ):
        one.wait_ready()
        tools.say(f"critest, {peer.name} {peer.release}, {name}")
        try:
            specs = critest.against(
                f"unix://{serving.socket}",
                ("-runtime-handler", handler),
                options.report / name,
                judged,
                focus=options.focus,
                minutes=options.minutes,
            )
        finally:
            (options.report / f"{name}-{peer.name}.log").write_text(serving.log_tail(lines=0))
            (options.report / f"{name}-orlopd.log").write_bytes(one.settings.log.read_bytes())
    return Result(judged, "spdy", options.focus, tuple(specs), time.monotonic() - started)


def _apart(peer: Peer, name: str, options: argparse.Namespace) -> Result:
    """The same in mount and network namespaces of its own: critest wants certain ports of the host."""
    argv = ["unshare", "--mount", "--net", "sh", os.fspath(APART), sys.executable, "-m", *peer.inside, name]
    argv += ["--inside", "--focus", options.focus]
    argv += ["--report", os.fspath(options.report), "--minutes", str(options.minutes)]
    result: Path = options.report / f"{name}.json"
    result.unlink(missing_ok=True)
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False)
    if done.returncode or not result.exists():
        raise tools.ToolError(f"the run {name} ended with {done.returncode}: see above")
    said = json.loads(result.read_text())
    return Result(**said | {"specs": tuple(Spec(**spec) for spec in said["specs"])})


def failures(peer: Peer, results: Mapping[str, Result]) -> list[str]:
    """What is Orlop's own to mend."""
    with_base = {spec.name for spec in results[BASE].of("failed")} if BASE in results else set()
    found = []
    for name, result in results.items():
        if name == BASE:
            continue
        excused = with_base | set(peer.runs[name].unserved)
        found += [f"{name}: {spec.name}" for spec in result.of("failed") if spec.name not in excused]
        passed = len(result.of("passed"))
        if not result.focus and passed < peer.least_passed:
            found.append(f"{name}: only {passed} specs passed, at least {peer.least_passed} should")
    return found


def table(results: Mapping[str, Result]) -> Sequence[str]:
    """For docs/."""
    outcomes: tuple[critest.Outcome, ...] = ("passed", "failed", "refused", "unavailable", "skipped")
    rows = [f"| handler | {' | '.join(outcomes)} | time |", f"|---|{'---|' * len(outcomes)}---|"]
    for name, result in results.items():
        counts = " | ".join(str(len(result.of(outcome))) for outcome in outcomes)
        rows.append(f"| `{name}` | {counts} | {result.seconds:.0f} s |")
    return rows


def main(peer: Peer, names: Sequence[str], options: argparse.Namespace) -> int:
    """Make the runs of these names; 0 when all is well."""
    if os.geteuid() != 0:
        print("conformance: critest needs root", file=sys.stderr)
        return 2
    options.report = options.report.absolute()
    options.report.mkdir(parents=True, exist_ok=True)
    try:
        if options.inside:
            (name,) = names
            found = json.dumps(asdict(_run(peer, name, options)), indent=1)
            (options.report / f"{name}.json").write_text(found)
            return 0
        # Made here, where there is a network.
        images.storage()
        tools.cri_tools()
        peer.make()
        build_guest(base_config())
        results = {name: _apart(peer, name, options) for name in names}
    except tools.ToolError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    for name, result in results.items():
        print(f"{peer.name} {peer.release}, {name}:")
        print("\n".join(critest.lines(result)))
    print("\n".join(table(results)))
    bad = failures(peer, results)
    print(f"conformance: {len(bad)} problems; reports: {options.report}")
    for one in bad:
        print(f"  {one}")
    return 1 if bad else 0
