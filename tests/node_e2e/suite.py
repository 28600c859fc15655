"""One run of the node suite against a CRI endpoint, inside an enclosure.

The suite brings its own etcd and API server, and starts the kubelet with the configuration below.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance import tools
from tests.conformance.images import E2E
from tests.node_e2e import units
from tests.node_e2e.enclosure import ADDRESS
from tests.node_e2e.images import PAUSE
from tests.node_e2e.programs import Programs

FIRST_IMAGES = (PAUSE, f"{E2E}/agnhost:2.63.0", f"{E2E}/busybox:1.37.0-1", f"{E2E}/nginx:1.15-4")
"""Pulled before the first spec: nearly all use them, and none should pay for it."""

KUBELET: dict[str, Any] = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "cgroupDriver": "cgroupfs",
    "cgroupRoot": "/",
    "failCgroupV1": False,
    "oomScoreAdj": 0,
    # No process is moved, and no limit set, outside of pods. An empty list would mean the default.
    "enforceNodeAllocatable": ["none"],
    "podCIDR": "10.100.0.0/24",
    "serializeImagePulls": False,
    "volumeStatsAggPeriod": "10s",
    "fileCheckFrequency": "10s",
    "evictionPressureTransitionPeriod": "30s",
    # The machine is shared: what others use of it must not evict the pods of a spec.
    "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%"},
    "imageGCHighThresholdPercent": 100,
}

REPORT = "junit.xml"
HANDLER = "test-handler"
"""The handler of the RuntimeClass that specs make: the runtime has to know it."""
GATES = {"KubeletInUserNamespace": True}
"""Lets the kubelet live without the right to set limits and OOM scores, which not every root has."""


@dataclass(frozen=True)
class Order:
    """Which specs to run, in how many processes, for how long at most.

    With ``units`` they may restart the kubelet: it is a unit of what stands for systemd.
    """

    focus: str
    skip: str
    processes: int
    minutes: int
    units: bool = False


def pull(endpoint: str) -> None:
    """Pull the images that nearly all specs use. Raises ToolError."""
    crictl = tools.cri_tools()[0]
    for image in FIRST_IMAGES:
        options = ["--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--timeout", "200s"]
        tools.run([crictl, *options, "pull", image])


def _arguments(
    endpoint: str, programs: Programs, work: Path, reports: Path, gates: Mapping[str, bool]
) -> Sequence[str]:
    config = work / "kubelet.yaml"
    # JSON is YAML.
    config.write_text(json.dumps(KUBELET | {"featureGates": {**GATES, **gates}}, indent=1))
    return [
        f"--k8s-bin-dir={programs.directory}",
        f"--bearer-token={secrets.token_hex(16)}",
        f"--node-name={socket.gethostname()}",
        f"--container-runtime-endpoint={endpoint}",
        f"--image-service-endpoint={endpoint}",
        f"--kubelet-config-file={config}",
        f"--kubelet-flags=--oom-score-adj=0 --node-ip={ADDRESS}",
        # What a gate makes meaningless, a spec skips by itself, once it knows of the gate.
        *(f"--feature-gates={name}={str(on).lower()}" for name, on in gates.items()),
        "--prepull-images=false",
        "--server-start-timeout=5m",
        f"--report-dir={reports}",
    ]


def command(
    programs: Programs, order: Order, reports: Path, specs: Path, arguments: Sequence[str]
) -> list[str]:
    """ginkgo that runs the program of ``specs``, to which the arguments go; :data:`REPORT` is its report."""
    return [
        os.fspath(programs.ginkgo),
        "--no-color",
        "-v",
        f"--procs={order.processes}",
        f"--timeout={order.minutes}m",
        f"--focus={order.focus}",
        *([f"--skip={order.skip}"] if order.skip else []),
        f"--output-dir={reports}",
        f"--junit-report={REPORT}",
        os.fspath(specs),
        "--",
        *arguments,
    ]


def run(endpoint: str, programs: Programs, order: Order, reports: Path, gates: Mapping[str, bool]) -> Path:
    """Run the specs; the path of the JUnit report. Raises ToolError when there is none.

    ``gates`` are the feature gates that the kubelet of this runtime has beside :data:`GATES`.
    """
    # The suite writes into the directory of its program.
    work = reports / "work"
    work.mkdir()
    specs = work / "e2e_node.test"
    specs.symlink_to(programs.suite)
    report = reports / REPORT
    argv = command(programs, order, reports, specs, _arguments(endpoint, programs, work, reports, gates))
    path = [os.fspath(units.install(work))] if order.units else []
    environment = os.environ | {"PATH": ":".join([*path, os.environ["PATH"]])}
    with (reports / "suite.log").open("wb") as log:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=work,
            env=environment,
            check=False,
            timeout=order.minutes * 60 + 300,
        )
    if not report.exists():
        raise tools.ToolError(
            f"the suite ended with {done.returncode} and no report: see {reports}/suite.log"
        )
    return report
