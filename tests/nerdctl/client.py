"""nerdctl over containerd, with a network and files of its own; what it runs are VMs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping

from bench import peers

from tests import bridged
from tests.doors.containerd import RUNTIME, Containerd
from tests.node import Done

NETWORK = "test"


class Nerdctl:
    """nerdctl's command line over ``containerd``, and the network :data:`NETWORK`."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._binary = peers.nerdctl() / "nerdctl"
        self._directory = containerd.directory / "nerdctl"
        self._directory.mkdir()
        self._bridge = f"nrd{os.urandom(3).hex()}"
        network = bridged.conflist(
            NETWORK, self._bridge, bridged.any_subnet(), self._directory / "ipam", version="0.4.0"
        )
        self._networks = bridged.write(self._directory / "cni", network)

    @property
    def env(self) -> Mapping[str, str]:
        """The command's environment."""
        return self._containerd.env

    def argv(self, *args: str) -> list[str]:
        """The command line of a command."""
        options = {
            "address": self._containerd.socket,
            "data-root": self._directory / "data",
            "cni-path": bridged.plugins(),
            "cni-netconfpath": self._networks,
            "cgroup-manager": "cgroupfs",
        }
        named = [f"--{name}={value}" for name, value in options.items()]
        return [os.fspath(self._binary), *named, *args]

    def __call__(self, *args: str, stdin: bytes | None = None, check: bool = True) -> Done:
        return self._containerd.done(self.argv(*args), stdin=stdin, check=check, lines=5)

    def run(self, *args: str, network: str = NETWORK, stdin: bytes | None = None, check: bool = True) -> Done:
        """``nerdctl run`` in a VM."""
        return self(*self.running(*args, network=network), stdin=stdin, check=check)

    @staticmethod
    def running(*args: str, network: str = NETWORK) -> list[str]:
        """The same as arguments."""
        return ["run", "--runtime", RUNTIME, "--pull", "never", "--network", network, *args]

    def address(self, name: str) -> str:
        """The address of a container that runs."""
        done = self("exec", name, "ip", "-o", "-4", "addr", "show", "dev", "eth0")
        return done.out.split()[3].partition("/")[0]

    def state(self, name: str) -> dict[str, object]:
        """How a container stands."""
        (found,) = json.loads(self("inspect", name).out)
        state: dict[str, object] = found["State"]
        return state

    def remove_containers(self) -> None:
        """Remove all, whether they run or not."""
        names = self("ps", "-a", "-q", "--no-trunc", check=False).out.split()
        if names:
            self("rm", "-f", *names, check=False)

    def remove_all(self) -> None:
        """Leave nothing on this host."""
        self.remove_containers()
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True, check=False)
