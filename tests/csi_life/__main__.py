"""Kubernetes' storage suite on our CSI driver: ``python -m tests.csi_life --help``. Needs root.

The suite is told of a driver what it can (``-storage.testdriver``), and judges it with pods, claims and
snapshots on a cluster of two nodes. Ends with 0 only when every spec passed that is not in the list of
exceptions, at the second try at last.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orlop.csi import names
from tests.cluster.specs import NEEDED, fresh, judged
from tests.conformance import tools
from tests.csi_life import room, sidecars
from tests.node_e2e import judgement, programs, suite

RUNS = {"vm": ("vm", "orlop"), "guest": ("vm", "orlop-vm"), "process": ("process", "orlop")}
"""Each with the handler of its pods, and the StorageClass of their claims."""
EXCEPTIONS = Path(__file__).with_name("exceptions.toml")
DRIVER = r"External Storage.*Driver: csi\.orlop\.io"
# What a driver of its kind can have no part in, and what takes a node away or hundreds of pods.
_ABSENT = "Windows|SELinux|VolumeAttributesClass|volumegroupsnapshot|snapshotmetadata|Pre-provisioned PV"
_ROUGH = r"Inline-volume|CSI Ephemeral|\[Disruptive\]|\[Serial\]|stress"
# Its content does not say which node has it, and the sidecar of each node waits for its own.
_OF_NO_NODE = "Pre-provisioned Snapshot"
SKIP = "|".join((_ABSENT, _ROUGH, _OF_NO_NODE))
SLOW = r"\[Slow\]"
_CAN = (
    "persistence",
    "block",
    "fsGroup",
    "exec",
    "snapshotDataSource",
    "pvcDataSource",
    "controllerExpansion",
    "nodeExpansion",
    "singleNodeVolume",
    "topology",
    "capacity",
    "readWriteOncePod",
)


def definition(run: str) -> dict[str, Any]:
    """The driver as the suite is told of it (test/e2e/storage/external)."""
    # A disk that a guest mounts is one VM's at a time, by whichever PersistentVolume a pod names it.
    several = dict.fromkeys(("multipods", "multiplePVsSameID"), run != "guest")
    can = dict.fromkeys(_CAN, True) | several | {"onlineExpansion": False}
    # What the node has mounted is 9p in a VM, and specs look.
    types = [""] if run == "vm" else ["", "ext4"]
    return {
        "DriverInfo": {
            "Name": names.DRIVER,
            "Capabilities": can,
            "SupportedSizeRange": {"Min": "64Mi", "Max": "1Gi"},
            "SupportedFsType": {name: {} for name in types},
            "TopologyKeys": [names.TOPOLOGY],
        },
        "StorageClass": {"FromExistingClassName": RUNS[run][1]},
        "SnapshotClass": {"FromName": True},
        # A copy is made where its source is, which the scheduler does not know.
        "ClientNodeName": "node1",
    }


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or what is given in its place."""
    parser = argparse.ArgumentParser(prog="python -m tests.csi_life", description="Storage suite.")
    parser.add_argument("--run", default="vm", help=f"one or more of {', '.join(RUNS)}, with commas")
    parser.add_argument("--focus", default="", help="of the driver's specs those that match this expression")
    parser.add_argument("--slow", action="store_true", help="those that are marked slow as well")
    parser.add_argument("--processes", type=int, default=4, help="specs at a time")
    parser.add_argument("--minutes", type=int, default=120, help="bound of one run")
    parser.add_argument("--report", type=Path, default=Path("build/csi-e2e"), help="where reports go")
    return parser.parse_args(given)


def one_run(name: str, options: argparse.Namespace, built: Path, images: Path) -> judgement.Result:
    """A cluster, the specs, and those that failed once more."""
    handler, storage_class = RUNS[name]
    reports = fresh(options.report / name)
    told = reports / "driver.json"
    told.write_text(json.dumps(definition(name), indent=1))
    focus = f"{DRIVER}.*({options.focus})" if options.focus else DRIVER
    skip = SKIP if options.slow else f"{SKIP}|{SLOW}"
    order = suite.Order(focus, skip, options.processes, options.minutes)
    tools.say(f"pods under {handler}, volumes of the class {storage_class}")
    with room.storing(built, images, reports, handler) as one:
        return judged(one, name, order, reports, EXCEPTIONS, [f"--storage.testdriver={told}"])


def main() -> int:
    """Run what was asked for; 0 when all is well."""
    options = arguments()
    runs = options.run.split(",")
    if why := judgement.refusal("run", runs, RUNS):
        print(f"csi: {why}", file=sys.stderr)
        return 2
    try:
        built = room.prepared()
        images = sidecars.suite_storage(built, programs.build((*programs.CLUSTER, *NEEDED)))
        results = [one_run(name, options, built, images) for name in runs]
    except (tools.ToolError, AssertionError) as error:
        print(f"csi: {error}", file=sys.stderr)
        return 2
    return judgement.verdict("csi", results, options.report)


if __name__ == "__main__":
    sys.exit(main())
