"""critest through containerd: ``python -m tests.doors.conformance --help``. Needs root.

The same suite against one containerd: with runc, and with containers that are VMs behind Orlop's shim, whose
sandboxes containerd makes by a container or, where it can, by the shim itself. What fails with runc as well
is the set-up's. Ends with 0 when nothing failed with the shim but that, and what asks for a namespace of the
host.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.conformance import through
from tests.conformance.through import Run
from tests.doors.containerd import HANDLERS, RELEASES, WITH_SANDBOXERS, Containerd, containerd
from tests.node import Node

RUNS = {"runc": Run("runc", "process")} | {name: Run(name, "vm") for name in HANDLERS}
LEAST_PASSED = 85
"""With an old containerd, which skips some 25."""


@contextlib.contextmanager
def serve(release: str, _name: str, place: Path, one: Node, registry: str) -> Iterator[Containerd]:
    """containerd for a run."""
    with containerd(place, release, one.scratch / "state", registry) as serving:
        yield serving
        serving.remove_pods()


def main() -> int:
    """Run what was asked for; 0 when all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.doors.conformance", description=__doc__)
    parser.add_argument("--containerd", choices=RELEASES, default="2.3", help="its release")
    parser.add_argument("--handler", default="", help="of containerd's, by commas; all without a word")
    through.add_options(parser, "build/shim-conformance")
    options = parser.parse_args()
    release = options.containerd
    known = [name for name, how in HANDLERS.items() if not how or release in WITH_SANDBOXERS]
    peer = through.Peer(
        name="containerd",
        release=release,
        runs=RUNS,
        make=RELEASES[release],
        serve=partial(serve, release),
        inside=("tests.doors.conformance", "--containerd", release, "--handler"),
        least_passed=LEAST_PASSED,
    )
    return through.main(peer, options.handler.split(",") if options.handler else ["runc", *known], options)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
