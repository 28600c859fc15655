"""Debian's Docker with ``orlop-oci`` as a runtime, with a daemon, a network and files of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench import peers

from tests.conformance import tools
from tests.e2e.outside import root_directory
from tests.node import Done, Node
from tests.patience import PATIENCE

TIMEOUT = 300 * PATIENCE
IMAGE = "box:1"

_FETCH = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode(), end="")
"""


class Docker:
    """Docker's command line, and the daemon behind it. :meth:`start` before use, :meth:`stop` after it."""

    def __init__(self, directory: Path, node: Node) -> None:
        self._directory = directory
        self._root = tools.debian_packages(["docker.io", "containerd", "libdevmapper1.02.1"])
        self._libraries = os.pathsep.join(
            os.fspath(self._root / part / "x86_64-linux-gnu") for part in ("usr/lib", "lib")
        )
        self.runtime = directory / "orlop-oci"
        # Docker's libraries are not Python's.
        self.runtime.write_text(
            f"#!/bin/sh\nunset LD_LIBRARY_PATH\nORLOP_STATE={node.scratch}/state exec "
            f'{sys.executable} -m orlop.oci.command.main "$@"\n'
        )
        self.runtime.chmod(0o755)
        self._cgroup = f"/{directory.name}"
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def env(self) -> Mapping[str, str]:
        """The command's environment."""
        return {**os.environ, "DOCKER_CONFIG": os.fspath(self._directory)}

    def start(self) -> None:
        """Start the daemon, in a network namespace of its own: its bridge and its rules are nobody else's."""
        configuration = {
            "data-root": f"{self._directory}/root",
            "exec-root": f"{self._directory}/exec",
            "pidfile": f"{self._directory}/pid",
            "hosts": [f"unix://{self._directory}/sock"],
            "storage-driver": "overlay2",
            "cgroup-parent": self._cgroup,
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "runtimes": {"orlop": {"path": os.fspath(self.runtime)}},
            "default-runtime": "orlop",
        }
        file = self._directory / "daemon.json"
        file.write_text(json.dumps(configuration))
        bins = self._root / "usr/bin", self._root / "usr/sbin"
        env = {**os.environ, "LD_LIBRARY_PATH": self._libraries, "PATH": peers.search_path(*bins)}
        script = f"ip link set lo up && exec {bins[1]}/dockerd --config-file {file}"
        with (self._directory / "log").open("wb") as log:
            self._daemon = subprocess.Popen(
                ["unshare", "--net", "sh", "-c", script],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        limit = time.monotonic() + TIMEOUT
        while self("version", check=False).code:
            said = (self._directory / "log").read_text(errors="replace")[-2000:]
            assert self._daemon.poll() is None and time.monotonic() < limit, said
            time.sleep(0.2)

    def stop(self) -> None:
        """End the daemon, and what of it stays."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(TIMEOUT)
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        for place in reversed([line.split()[4] for line in lines]):
            if place.startswith(f"{self._directory}/"):
                subprocess.run(["umount", "--lazy", place], check=False)
        for top in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
            with contextlib.suppress(OSError):
                (top / self._cgroup.strip("/")).rmdir()

    def make_image(self, scratch: Path) -> None:
        """Make the image of busybox alone: no registry is reached from the daemon's network."""
        root = root_directory(scratch / "rootfs", tools.busybox())
        archive = scratch / "rootfs.tar"
        subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
        self("import", os.fspath(archive), IMAGE)

    def argv(self, *args: str) -> list[str]:
        """The command line of a Docker command."""
        return [f"{self._root}/usr/bin/docker", "--host", f"unix://{self._directory}/sock", *args]

    def __call__(self, *args: str, stdin: bytes = b"", check: bool = True) -> Done:
        argv = self.argv(*args)
        done = Done(
            argv,
            subprocess.run(
                argv, input=stdin, capture_output=True, timeout=TIMEOUT, env=self.env, check=False
            ),
        )
        if check:
            assert done.code == 0, done
        return done

    def fetch(self, address: str) -> str:
        """What is served at an address of the daemon's network; "" when nothing is."""
        assert self._daemon is not None
        enter = ["nsenter", f"--net=/proc/{self._daemon.pid}/ns/net", sys.executable, "-c", _FETCH, address]
        return subprocess.run(enter, capture_output=True, text=True, timeout=TIMEOUT, check=False).stdout

    def remove_containers(self) -> None:
        """Remove all containers."""
        for name in self("ps", "-aq").out.split():
            self("rm", "--force", name)


@contextlib.contextmanager
def docker(directory: Path, node: Node) -> Iterator[Docker]:
    """Docker until the block ends, with nothing left of it."""
    one = Docker(directory, node)
    try:
        one.start()
        one.make_image(directory)
        yield one
        one.remove_containers()
    finally:
        one.stop()
