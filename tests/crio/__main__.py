"""critest through CRI-O: ``python -m tests.crio --help``. Needs root.

The same suite against one CRI-O: with runc, and with containers that are in VMs by ``orlop-oci``, with a
sandbox container for each pod and without. What fails with runc as well is the set-up's. Ends with 0 when
nothing failed with ``orlop-oci`` but that, and what asks for a namespace of the host.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from bench import peers

from tests.conformance import critest, images, tools
from tests.conformance.__main__ import APART
from tests.conformance.critest import Result, Spec
from tests.crio.daemon import crio
from tests.doors.conformance import table
from tests.node import base_config, build_guest, node


class Run(NamedTuple):
    """A run of the suite: a handler of CRI-O's, as which of ours it is judged, and its sandbox containers."""

    handler: str
    judged: critest.Handler
    infra: bool


RUNS = {
    "runc": Run("runc", "process", infra=False),
    "orlop": Run("orlop", "vm", infra=True),
    "orlop-dropped": Run("orlop", "vm", infra=False),
}
LEAST_PASSED = 80
"""Fewer mean that something kept specs from running."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.crio", description=__doc__)
    parser.add_argument("--run", default=",".join(RUNS), help="which, separated by commas")
    parser.add_argument("--focus", default="", help="only the specs whose name matches this expression")
    parser.add_argument("--report", type=Path, default=Path("build/crio"))
    parser.add_argument("--minutes", type=int, default=40, help="bound of one run")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(name: str, options: argparse.Namespace) -> Result:
    """One run, on a daemon and a CRI-O of its own."""
    handler, judged, infra = RUNS[name]
    started = time.monotonic()
    with (
        images.serve(images.storage(), f"127.0.0.1:{tools.free_port()}") as registry,
        tempfile.TemporaryDirectory(prefix="orlop-crio-") as place,
        node(registry, prefix="orlop-ct-") as one,
        crio(Path(place), one, registry, infra=infra) as peer,
    ):
        one.wait_ready()
        tools.say(f"critest, CRI-O {peers.CRIO_VERSION}, {name}")
        try:
            specs = critest.against(
                f"unix://{peer.socket}",
                ("-runtime-handler", handler),
                options.report / name,
                judged,
                focus=options.focus,
                minutes=options.minutes,
            )
        finally:
            (options.report / f"{name}-crio.log").write_text(peer.log_tail(lines=0))
            (options.report / f"{name}-orlopd.log").write_bytes(one.settings.log.read_bytes())
    return Result(judged, "spdy", options.focus, tuple(specs), time.monotonic() - started)


def apart(name: str, options: argparse.Namespace) -> Result:
    """The same in mount and network namespaces of its own: critest wants certain ports of the host."""
    argv = ["unshare", "--mount", "--net", "sh", os.fspath(APART), sys.executable, "-m", "tests.crio"]
    argv += ["--inside", "--run", name, "--focus", options.focus]
    argv += ["--report", options.report, "--minutes", str(options.minutes)]
    result: Path = options.report / f"{name}.json"
    result.unlink(missing_ok=True)
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False)
    if done.returncode or not result.exists():
        raise tools.ToolError(f"the run {name} ended with {done.returncode}: see above")
    said = json.loads(result.read_text())
    return Result(**said | {"specs": tuple(Spec(**spec) for spec in said["specs"])})


def failures(results: dict[str, Result]) -> list[str]:
    """What is not the set-up's."""
    excused = {spec.name for spec in results["runc"].of("failed")} if "runc" in results else set()
    found = []
    for name, result in results.items():
        if name == "runc":
            continue
        found += [f"{name}: {spec.name}" for spec in result.of("failed") if spec.name not in excused]
        passed = len(result.of("passed"))
        if not result.focus and passed < LEAST_PASSED:
            found.append(f"{name}: only {passed} specs passed, at least {LEAST_PASSED} should")
    return found


def main() -> int:
    """Run what was asked for; 0 when all is well."""
    options = arguments()
    if os.geteuid() != 0:
        print("conformance: critest needs root", file=sys.stderr)
        return 2
    options.report = options.report.absolute()
    options.report.mkdir(parents=True, exist_ok=True)
    try:
        if options.inside:
            result = run(options.run, options)
            (options.report / f"{options.run}.json").write_text(json.dumps(asdict(result), indent=1))
            return 0
        # Made here, where there is a network.
        images.storage()
        tools.cri_tools()
        peers.crio()
        build_guest(base_config())
        results = {name: apart(name, options) for name in options.run.split(",")}
    except tools.ToolError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    for name, result in results.items():
        print(f"CRI-O {peers.CRIO_VERSION}, {name}:")
        print("\n".join(critest.lines(result)))
    print("\n".join(table(results)))
    bad = failures(results)
    print(f"conformance: {len(bad)} problems; reports: {options.report}")
    for one in bad:
        print(f"  {one}")
    return 1 if bad else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
