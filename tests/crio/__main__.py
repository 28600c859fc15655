"""critest through CRI-O: ``python -m tests.crio --help``. Needs root.

The same suite against one CRI-O: with runc, and with containers that are in VMs: by ``orlop-oci``, with a
sandbox container for each pod and without, and by the shim. What fails with runc as well is the set-up's.
Ends with 0 when nothing failed with Orlop but that, and what asks for a namespace of the host.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from bench import peers

from tests.conformance import through
from tests.conformance.through import Run
from tests.crio.daemon import Crio, crio
from tests.node import Node

UNSERVED_FOR_SHIMS = (
    "Streaming runtime should support streaming interfaces runtime should support portforward [Conformance]",
    "Container runtime should support log runtime should support reopening container log [Conformance]",
)
"""CRI-O's PortForwardContainer and ReopenContainerLog are empty for them (internal/oci/runtime_vm.go)."""

RUNS = {
    "runc": Run("runc", "process"),
    "orlop": Run("orlop", "vm"),
    "orlop-dropped": Run("orlop", "vm"),
    "orlop-vm": Run("orlop-vm", "vm", UNSERVED_FOR_SHIMS),
}
WITH_SANDBOX_CONTAINERS = ("orlop",)


def serve(name: str, place: Path, one: Node, registry: str) -> AbstractContextManager[Crio]:
    """CRI-O for a run."""
    return crio(place, one, registry, infra=name in WITH_SANDBOX_CONTAINERS)


def main() -> int:
    """Run what was asked for; 0 when all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.crio", description=__doc__)
    parser.add_argument("--run", default=",".join(RUNS), help="which, separated by commas")
    through.add_options(parser, "build/crio")
    options = parser.parse_args()
    peer = through.Peer(
        name="crio",
        release=peers.CRIO_VERSION,
        runs=RUNS,
        make=peers.crio,
        serve=serve,
        inside=("tests.crio", "--run"),
        least_passed=80,
    )
    return through.main(peer, options.run.split(","), options)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
