"""Debian's podman with ``orlop-oci`` as its runtime, in a directory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench import peers

import orlop
from tests import bridged
from tests.conformance import tools
from tests.node import Done, Node
from tests.patience import PATIENCE

TIMEOUT = 300 * PATIENCE
PROGRAM = "; ".join(
    (
        f"import sys; sys.path.append('{Path(orlop.__file__).parent.parent}')",
        "from orlop.oci.command.main import command; command()",
    )
)
"""The command as Debian's package starts it: it looks for nothing else that is installed."""


class Podman:
    """podman's command line, whose storage, state and network are below ``directory``.

    Its networks are netavark's, or made by CNI plug-ins, which the podman of Debian 13 no longer knows.
    """

    def __init__(self, directory: Path, node: Node, *, netavark: bool = False) -> None:
        self._directory = directory
        self.netavark = netavark or tools.release() != "12"
        self._enter: tuple[str, ...] = ()
        self._root = peers.debian_podman()
        libraries = os.pathsep.join(
            os.fspath(self._root / part / "x86_64-linux-gnu") for part in ("usr/lib", "lib")
        )
        self.runtime = directory / "orlop-oci"
        self.network = f"pod{os.urandom(3).hex()}"
        self._write(node, libraries)
        self._env = {
            **os.environ,
            "LD_LIBRARY_PATH": libraries,
            "PATH": peers.search_path(self._root / "usr/bin"),
            "CONTAINERS_CONF": f"{directory}/containers.conf",
            "CONTAINERS_REGISTRIES_CONF": f"{node.scratch}/registries.conf",
            "CONTAINERS_STORAGE_CONF": f"{directory}/storage.conf",
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }

    def _write(self, node: Node, libraries: str) -> None:
        directory, root = self._directory, self._root
        # podman's libraries are not Python's, and what conmon passes on is not ours.
        self.runtime.write_text(
            f"#!/bin/sh\nunset LD_LIBRARY_PATH\nORLOP_STATE={node.scratch}/state exec {sys.executable} "
            f'-IS -c "{PROGRAM}" "$@"\n'
        )
        self.runtime.chmod(0o755)
        tables: dict[str, dict[str, object]] = {
            "containers": {
                "log_driver": "k8s-file",
                "seccomp_profile": f"{root}/usr/share/containers/seccomp.json",
                "default_ulimits": ["nofile=1024:1024", "nproc=4096:4096"],
            },
            "network": {
                "default_network": self.network,
                "network_config_dir": f"{directory}/networks",
                **(self._of_netavark() if self.netavark else self._of_cni()),
            },
            "engine": {
                "runtime": "orlop-oci",
                "runtime_supports_json": ["orlop-oci"],
                "cgroup_manager": "cgroupfs",
                "events_logger": "file",
                "tmp_dir": f"{directory}/tmp",
                "infra_image": "registry.k8s.io/pause:3.10",
                "helper_binaries_dir": [f"{root}/usr/lib/podman"],
                "conmon_path": [f"{root}/usr/bin/conmon"],
                "conmon_env_vars": [
                    f"PATH={peers.search_path(root / 'usr/bin')}",
                    f"LD_LIBRARY_PATH={libraries}",
                ],
            },
            "engine.runtimes": {"orlop-oci": [os.fspath(self.runtime)]},
        }
        text = "".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
            for name, table in tables.items()
        )
        (directory / "containers.conf").write_text(text)
        storage = {"driver": "overlay", "graphroot": f"{directory}/root", "runroot": f"{directory}/run"}
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in storage.items())
        (directory / "storage.conf").write_text(f"[storage]\n{lines}")

    def _of_cni(self) -> dict[str, object]:
        """Settings, and the network in the form of CNI."""
        subnet, leases = f"{_network_address()}.0/24", self._directory / "leases"
        network = bridged.conflist(self.network, self.network, subnet, leases, version="0.4.0")
        bridged.write(self._directory / "networks", network)
        return {"network_backend": "cni", "cni_plugin_dirs": bridged.PLUGINS}

    def _of_netavark(self) -> dict[str, object]:
        """Settings, and the network in netavark's form, with names."""
        (self._directory / "networks").mkdir()
        address = _network_address()
        network = {
            "name": self.network,
            "id": os.urandom(32).hex(),
            "driver": "bridge",
            "network_interface": self.network,
            "created": "2026-01-01T00:00:00Z",
            "subnets": [{"subnet": f"{address}.0/24", "gateway": f"{address}.1"}],
            "ipv6_enabled": False,
            "internal": False,
            "dns_enabled": True,
            "ipam_options": {"driver": "host-local"},
        }
        (self._directory / "networks" / f"{self.network}.json").write_text(json.dumps(network))
        return {"network_backend": "netavark"}

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Every command in a network namespace of its own, with the bridges and the rules that they make."""
        script = "ip link set lo up && echo up && exec sleep infinity"
        argv = ["unshare", "--net", "sh", "-c", script]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as keeper:
            try:
                assert keeper.stdout is not None and keeper.stdout.readline() == b"up\n"
                self._enter = ("nsenter", f"--net=/proc/{keeper.pid}/ns/net")
                yield
                self.remove_containers()
            finally:
                self._enter = ()
                keeper.kill()

    def argv(self, *args: str) -> list[str]:
        """The command line of a podman command."""
        return [*self._enter, os.fspath(self._root / "usr/bin/podman"), *args]

    @property
    def env(self) -> dict[str, str]:
        """Its environment."""
        return self._env

    def __call__(self, *args: str, stdin: bytes = b"", check: bool = True) -> Done:
        argv = self.argv(*args)
        done = Done(
            argv,
            subprocess.run(
                argv, input=stdin, capture_output=True, timeout=TIMEOUT, env=self._env, check=False
            ),
        )
        if check:
            assert done.code == 0, done
        return done

    def containers(self) -> list[str]:
        """What the runtime knows, which podman may not."""
        argv = [os.fspath(self.runtime), "list", "--quiet"]
        return subprocess.run(argv, capture_output=True, check=True, text=True).stdout.split()

    def remove_containers(self) -> None:
        """Remove pods and containers."""
        self("pod", "rm", "--all", "--force", "--time", "0", check=False)
        self("rm", "--all", "--force", "--time", "0", check=False)

    def remove_all(self) -> None:
        """Remove pods, containers and the network."""
        self.remove_containers()
        subprocess.run(["ip", "link", "delete", self.network], capture_output=True, check=False)
        for point in (self._directory / "root" / "overlay", self._directory / "run" / "netns"):
            subprocess.run(["umount", point], capture_output=True, check=False)


def _network_address() -> str:
    """The first three numbers of one."""
    return f"10.{100 + os.urandom(1)[0] % 100}.{os.urandom(1)[0]}"


@contextlib.contextmanager
def podman(directory: Path, node: Node, *, netavark: bool = False) -> Iterator[Podman]:
    """podman until the block ends, with nothing left of it."""
    one = Podman(directory, node, netavark=netavark)
    try:
        yield one
    finally:
        one.remove_all()
