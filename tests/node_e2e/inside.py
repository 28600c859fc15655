"""A run within its enclosure: registry, runtime, suite. ``python -m tests.node_e2e.inside DIRECTORY``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.conformance import images as served
from tests.conformance import tools
from tests.node import node
from tests.node_e2e import containerd, images, programs, suite
from tests.node_e2e.judgement import PEER

ORDER = "order.json"
GATES = {"PodAndContainerStatsFromCRI": True}
"""What docs/operations.md tells the owner of a node to turn on."""


def main() -> int:
    """Do what the order in the directory says; 0 when there is a report, whatever it says."""
    directory = Path(sys.argv[1])
    order = json.loads((directory / ORDER).read_text())
    runtime, reports = order.pop("runtime"), Path(order.pop("reports"))
    wanted, built = suite.Order(**order), programs.build()
    with served.serve(images.storage(built), f"127.0.0.1:{tools.free_port()}") as registry:
        if runtime == PEER:
            log = reports / "containerd.log"
            with containerd.running(directory / "containerd", registry, log) as endpoint:
                suite.pull(endpoint)
                suite.run(endpoint, built, wanted, reports, {})
            return 0
        named = {"process" if runtime == "process" else "vm": {"names": [suite.HANDLER]}}
        with node(registry, handler=runtime, extra=named, prefix=f"{directory.name}/n") as one:
            endpoint = f"unix://{one.socket}"
            suite.pull(endpoint)
            # Afterwards: a template of an older guest image counts until it is looked at.
            one.wait_ready()
            try:
                suite.run(endpoint, built, wanted, reports, GATES)
            finally:
                (reports / "orlopd.log").write_bytes(one.settings.log.read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
