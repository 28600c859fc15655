"""containerd with runc in an enclosure: what tells a failure of the machine from one of Orlop."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench import peers

from tests import bridged
from tests.conformance import images, tools
from tests.node_e2e.images import PAUSE
from tests.node_e2e.suite import HANDLER

START_TIMEOUT = 60.0
SOCKET = Path("/run/containerd/containerd.sock")
"""The kubelet's own statistics ask containerd there and nowhere else; an enclosure has its own."""


def _hosts(directory: Path, registry: str) -> Path:
    """The directory that sends the registries of the suite to the one on loopback."""
    for host in images.HOSTS:
        place = directory / "certs.d" / host
        place.mkdir(parents=True)
        url = f"http://{registry}/v2/{host}"
        (place / "hosts.toml").write_text(
            f'server = "{url}"\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\noverride_path = true\n'
        )
    return directory / "certs.d"


def _network(directory: Path) -> Path:
    network = bridged.conflist("node", "cni0", "10.88.0.0/16", directory / "ipam")
    return bridged.write(directory / "cni", network)


def _config(directory: Path, registry: str, network: Path) -> Path:
    image, runtime = "plugins.'io.containerd.cri.v1.images'", "plugins.'io.containerd.cri.v1.runtime'"
    path = directory / "config.toml"
    path.write_text(
        f'version = 3\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        f'[grpc]\naddress = "{SOCKET}"\n[ttrpc]\naddress = "{SOCKET}.ttrpc"\n'
        f'[{image}]\nsnapshotter = "overlayfs"\n[{image}.pinned_images]\nsandbox = "{PAUSE}"\n'
        f'[{image}.registry]\nconfig_path = "{_hosts(directory, registry)}"\n'
        # Root without CAP_SYS_RESOURCE may not lower an OOM score.
        f"[{runtime}]\nrestrict_oom_score_adj = true\n"
        f'[{runtime}.containerd]\ndefault_runtime_name = "runc"\n'
        f'[{runtime}.containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'
        f'[{runtime}.containerd.runtimes.{HANDLER}]\nruntime_type = "io.containerd.runc.v2"\n'
        f'[{runtime}.cni]\nbin_dirs = {json.dumps(bridged.PLUGINS)}\nconf_dir = "{network}"\n'
    )
    return path


@contextlib.contextmanager
def running(directory: Path, registry: str, log: Path, network: Path | None = None) -> Iterator[str]:
    """containerd over the directory until the block ends; yields its endpoint.

    ``network`` is the directory of the CNI configuration, in place of a bridge of its own.
    """
    directory.mkdir()
    config = _config(directory, registry, network or _network(directory))
    binaries = peers.containerd()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binaries / "containerd", "--config", config],
            env={**os.environ, "PATH": peers.search_path(binaries)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        limit = time.monotonic() + START_TIMEOUT
        while not SOCKET.exists():
            if process.poll() is not None or time.monotonic() > limit:
                raise tools.ToolError(f"containerd does not serve: see {log}")
            time.sleep(0.1)
        yield f"unix://{SOCKET}"
    finally:
        process.terminate()
        process.wait(30)
