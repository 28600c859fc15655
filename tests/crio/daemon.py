"""CRI-O with ``orlop-oci`` and with the shim as runtimes, in a directory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench import peers

from tests import bridged
from tests.conformance import images, tools
from tests.node import Done, Node
from tests.orphan import Orphan
from tests.patience import PATIENCE

PLAIN_RUNC = Path(__file__).with_name("plain_runc.py")
PAUSE = "registry.k8s.io/pause:3.9"
SHIM = "containerd-shim-orlop-v2"
"""CRI-O takes no shim by another name than such a one."""

HANDLERS = {"runc": "oci", "orlop": "oci", "orlop-vm": "vm"}
"""Its handlers, and the type of each."""

TIMEOUT = 300 * PATIENCE
START_TIMEOUT = 120 * PATIENCE


class Crio:
    """A CRI-O whose storage, state and network are below ``directory``.

    With ``infra`` it makes a sandbox container for each pod; without, which is what it does unless told
    otherwise, only for those that share their processes.
    """

    def __init__(
        self, directory: Path, node: Node, registry: str, *, infra: bool, network: Path | None
    ) -> None:
        self.directory = directory
        self.socket = directory / "c.sock"
        self._binaries = peers.crio()
        self._registry = registry
        self.infra = infra
        self.log = directory / "crio.log"
        self._bridge = f"crio{os.urandom(3).hex()}"
        self._process: Orphan | None = None
        self._programs = {
            "runc": self._program("runc", f"{sys.executable} {PLAIN_RUNC} {_which('runc')}"),
            "orlop": self._program("orlop-oci", f"{sys.executable} -m orlop.oci.command.main", node),
            "orlop-vm": self._program(SHIM, f"{sys.executable} -m orlop.shim.command.main", node),
        }
        (directory / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (directory / "registries.conf").write_text(self._registries())
        (directory / "conf.d").mkdir()
        (directory / "crio.conf").write_text(self._config(network or self._network()))

    def _program(self, name: str, command: str, node: Node | None = None) -> Path:
        place = self.directory / name
        state = f"ORLOP_STATE={node.scratch}/state " if node else ""
        place.write_text(f'#!/bin/sh\n{state}exec {command} "$@"\n')
        place.chmod(0o755)
        return place

    def _registries(self) -> str:
        return "".join(
            f'[[registry]]\nprefix = "{host}"\nlocation = "{self._registry}/{host}"\ninsecure = true\n'
            for host in images.HOSTS
        )

    def _network(self) -> Path:
        leases = self.directory / "ipam"
        network = bridged.conflist("test", self._bridge, bridged.any_subnet(), leases, ports=False)
        return bridged.write(self.directory / "cni", network)

    def _config(self, network: Path) -> str:
        place = self.directory
        handlers = "".join(
            f'[crio.runtime.runtimes.{name}]\nruntime_path = "{path}"\nruntime_type = "{HANDLERS[name]}"\n'
            f'runtime_root = "{place}/state/{name}"\nmonitor_path = "{_which("conmon")}"\n'
            'monitor_cgroup = "pod"\nprivileged_without_host_devices = true\n'
            f'monitor_env = ["PATH={os.environ["PATH"]}"]\n'
            for name, path in self._programs.items()
        )
        return (
            f'[crio]\nroot = "{place}/root"\nrunroot = "{place}/run"\nstorage_driver = "overlay"\n'
            f'log_dir = "{place}/logs"\nversion_file = "{place}/version"\n'
            f'version_file_persist = "{place}/version-persist"\nclean_shutdown_file = "{place}/clean"\n'
            f'[crio.api]\nlisten = "{self.socket}"\nstream_address = "127.0.0.1"\nstream_port = "0"\n'
            '[crio.runtime]\ndefault_runtime = "runc"\ncgroup_manager = "cgroupfs"\nconmon_cgroup = "pod"\n'
            f'pinns_path = "{self._binaries}/pinns"\nnamespaces_dir = "{place}/ns"\n'
            f'drop_infra_ctr = {json.dumps(not self.infra)}\nhooks_dir = []\nlog_level = "debug"\n'
            f'container_exits_dir = "{place}/exits"\ncontainer_attach_socket_dir = "{place}/attach"\n'
            f'irqbalance_config_restore_file = "disable"\n{handlers}'
            f'[crio.image]\npause_image = "{PAUSE}"\npause_command = ""\n'
            f'signature_policy = "{place}/policy.json"\nsignature_policy_dir = "{place}/policies"\n'
            f'[crio.network]\nnetwork_dir = "{network}"\n'
            f'plugin_dirs = ["{bridged.plugins()}"]\n'
            "[crio.metrics]\nenable_metrics = false\n[crio.nri]\nenable_nri = false\n"
        )

    def start(self) -> None:
        """Start it and wait until it serves."""
        argv = [
            os.fspath(self._binaries / "crio"),
            *("--config", os.fspath(self.directory / "crio.conf")),
            *("--config-dir", os.fspath(self.directory / "conf.d")),
            *("--registries-conf", os.fspath(self.directory / "registries.conf")),
            *("--registries-conf-dir", os.fspath(self.directory / "conf.d")),
        ]
        self._process = Orphan(argv, self.log)
        limit = time.monotonic() + START_TIMEOUT
        while self.cri("version", check=False).code:
            if not self._process.alive or time.monotonic() > limit:
                raise tools.ToolError(f"CRI-O does not serve:\n{self.log_tail()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End it; what it runs goes on."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def log_tail(self, lines: int = 30) -> str:
        """The last of what it said, with 0 all."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def argv(self, *args: str | Path) -> list[str]:
        """The command line of a crictl command."""
        crictl = tools.cri_tools()[0]
        return [os.fspath(crictl), "-r", f"unix://{self.socket}", "-t", f"{TIMEOUT:.0f}s", *map(str, args)]

    def cri(self, *args: str | Path, check: bool = True) -> Done:
        """What comes of a crictl command."""
        argv = self.argv(*args)
        done = Done(
            argv,
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False),
        )
        if check:
            assert done.code == 0, f"{done}\n{self.log_tail()}"
        return done

    def containers(self) -> list[str]:
        """The containers that CRI-O has made with orlop-oci."""
        argv = [self._programs["orlop"], "--root", f"{self.directory}/state/orlop", "list", "--quiet"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()

    def remove_pods(self) -> None:
        """Remove what a kubelet has made."""
        for pod in self.cri("pods", "-q").out.split():
            self.cri("rmp", "-f", pod)

    def remove_all(self) -> None:
        """End it, and remove what it has mounted."""
        self.stop()
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        for place in reversed([line.split()[4] for line in lines]):
            if place.startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", place], check=False)
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True, check=False)
        for top in Path("/sys/fs/cgroup").iterdir():
            for group in (*top.glob("crio-*"), top / "crio"):
                _remove_empty(group)


def _remove_empty(group: Path) -> None:
    """Remove control groups that CRI-O leaves for pods of no kubelet. One in use stays."""
    for place in (*sorted(group.rglob("crio-*"), reverse=True), group):
        with contextlib.suppress(OSError):
            place.rmdir()


def _which(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise tools.ToolError(f"{name} is not installed: apt-get install {name}")
    return found


@contextlib.contextmanager
def crio(
    directory: Path, node: Node, registry: str, *, infra: bool = True, network: Path | None = None
) -> Iterator[Crio]:
    """CRI-O until the block ends, with nothing left of it. ``network`` is the directory of the CNI
    configuration, in place of a bridge of its own."""
    one = Crio(directory, node, registry, infra=infra, network=network)
    try:
        one.start()
        yield one
    except BaseException:
        with contextlib.suppress(AssertionError, subprocess.SubprocessError):
            one.remove_pods()
        raise
    else:
        one.remove_pods()
    finally:
        one.remove_all()
