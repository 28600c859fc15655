"""critest through containerd: ``python -m tests.doors.conformance --help``. Needs root.

The same suite against one containerd: with runc, and with containers that are VMs behind Orlop's shim, whose
sandboxes containerd makes by a container or, where it can, by the shim itself. What fails with runc as well
is the set-up's. Ends with 0 when nothing failed with the shim but that, and what asks for a namespace of the
host.
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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.conformance import critest, images, tools
from tests.conformance.__main__ import APART
from tests.conformance.critest import Result, Spec
from tests.doors.containerd import HANDLERS as OURS
from tests.doors.containerd import RELEASES, WITH_SANDBOXERS, containerd
from tests.node import base_config, build_guest, node

HANDLERS: dict[str, critest.Handler] = {"runc": "process"} | dict.fromkeys(OURS, "vm")
"""Runtime handlers of containerd's, and as which of ours each is judged."""

LEAST_PASSED = 85
"""With an old containerd, which skips some 25; fewer mean that something kept specs from running."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.doors.conformance", description=__doc__)
    parser.add_argument("--containerd", choices=RELEASES, default="2.3", help="its release")
    parser.add_argument("--handler", default="", help="of containerd's, by commas; all without a word")
    parser.add_argument("--focus", default="", help="only the specs whose name matches this expression")
    parser.add_argument("--report", type=Path, default=Path("build/shim-conformance"))
    parser.add_argument("--minutes", type=int, default=40, help="bound of one run")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(handler: str, options: argparse.Namespace) -> Result:
    """One run, on a daemon and a containerd of its own."""
    report: Path = options.report / handler
    started = time.monotonic()
    with (
        images.serve(images.storage(), f"127.0.0.1:{tools.free_port()}") as registry,
        tempfile.TemporaryDirectory(prefix="orlop-ctr-") as name,
        node(registry, prefix="orlop-ct-") as one,
        containerd(Path(name), options.containerd, one, registry) as peer,
    ):
        one.wait_ready()
        tools.say(f"critest, containerd {options.containerd} with {handler}")
        try:
            specs = critest.against(
                f"unix://{peer.socket}",
                ("-runtime-handler", handler),
                report,
                HANDLERS[handler],
                focus=options.focus,
                minutes=options.minutes,
            )
        finally:
            report.with_name(f"{handler}-containerd.log").write_text(peer.log_tail(lines=0))
            report.with_name(f"{handler}-orlopd.log").write_bytes(one.settings.log.read_bytes())
        peer.remove_pods()
    return Result(HANDLERS[handler], "spdy", options.focus, tuple(specs), time.monotonic() - started)


def apart(handler: str, options: argparse.Namespace) -> Result:
    """The same in a network namespace of its own: critest wants certain ports of the host."""
    argv = ["unshare", "--mount", "--net", "sh", os.fspath(APART), sys.executable, "-m", __spec__.name]
    argv += ["--inside", "--handler", handler, "--containerd", options.containerd]
    argv += ["--focus", options.focus, "--report", options.report, "--minutes", str(options.minutes)]
    result: Path = options.report / f"{handler}.json"
    result.unlink(missing_ok=True)
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False)
    if done.returncode or not result.exists():
        raise tools.ToolError(f"the run with {handler} ended with {done.returncode}: see above")
    said = json.loads(result.read_text())
    return Result(**said | {"specs": tuple(Spec(**spec) for spec in said["specs"])})


def failures(results: dict[str, Result]) -> list[str]:
    """What is the shim's own to mend."""
    excused = {spec.name for spec in results["runc"].of("failed")} if "runc" in results else set()
    found = []
    for handler, judged in results.items():
        if handler not in OURS:
            continue
        found += [f"{handler}: {spec.name}" for spec in judged.of("failed") if spec.name not in excused]
        passed = len(judged.of("passed"))
        if not judged.focus and passed < LEAST_PASSED:
            found.append(f"{handler}: only {passed} specs passed, at least {LEAST_PASSED} should")
    return found


def table(results: dict[str, Result]) -> Sequence[str]:
    """For docs/containerd.md."""
    outcomes: tuple[critest.Outcome, ...] = ("passed", "failed", "refused", "unavailable", "skipped")
    rows = [f"| handler | {' | '.join(outcomes)} | time |", f"|---|{'---|' * len(outcomes)}---|"]
    for handler, result in results.items():
        counts = " | ".join(str(len(result.of(outcome))) for outcome in outcomes)
        rows.append(f"| `{handler}` | {counts} | {result.seconds:.0f} s |")
    return rows


def main() -> int:
    """Run what was asked for; 0 when all is well."""
    options = arguments()
    if not options.handler:
        known = (name for name, how in OURS.items() if not how or options.containerd in WITH_SANDBOXERS)
        options.handler = ",".join(("runc", *known))
    if os.geteuid() != 0:
        print("conformance: critest needs root", file=sys.stderr)
        return 2
    options.report = options.report.absolute()
    options.report.mkdir(parents=True, exist_ok=True)
    try:
        if options.inside:
            result = run(options.handler, options)
            (options.report / f"{options.handler}.json").write_text(json.dumps(asdict(result), indent=1))
            return 0
        # Made here, where there is a network.
        images.storage()
        tools.cri_tools()
        RELEASES[options.containerd]()
        build_guest(base_config())
        results = {handler: apart(handler, options) for handler in options.handler.split(",")}
    except tools.ToolError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    for handler, result in results.items():
        print(f"containerd {options.containerd} with {handler}:")
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
