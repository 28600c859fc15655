"""containerd with ``containerd-shim-orlop-v2`` as a runtime, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import peers

import orlop
from tests import bridged
from tests.conformance import images, tools
from tests.lab import archive
from tests.node import Done
from tests.orphan import Orphan
from tests.patience import PATIENCE

RUNTIME = "io.containerd.orlop.v2"
SOURCES = Path(orlop.__file__).resolve().parent.parent
PAUSE = "registry.k8s.io/pause:3.9"
"""One that critest removes and pulls again: with another name for the same content it counts one too many."""
TIMEOUT = 300 * PATIENCE
START_TIMEOUT = 60 * PATIENCE

RELEASES: dict[str, Callable[[], Path]] = {
    "1.6": lambda: archive.unpacked(["containerd"], "12") / "usr/bin",
    "1.7": lambda: archive.unpacked(["containerd"], "13") / "usr/bin",
    "2.3": peers.containerd,
}
"""Where each containerd comes from: Debian's packages in seconds, the newest built from its Go module."""

HANDLERS = {"orlop": "", "orlop-sandbox": "shim"}
"""Runtimes of containerd's that are ours, and the sandboxer of each, "" for the usual one."""

WITH_SANDBOXERS = ("2.3",)
"""The releases whose configuration knows sandboxers."""

ASKED = tuple(os.environ.get("ORLOP_CONTAINERDS", "1.6,1.7").split(","))
"""Those that the tests run: without a word those that need no building."""


class Containerd:
    """The containerd of a release, whose storage and network are below ``directory``.

    Its shim is that of the daemon whose state is in ``state``.
    """

    def __init__(self, directory: Path, release: str, state: Path, registry: str) -> None:
        binaries = RELEASES[release]()
        self.release = release
        self.directory = directory
        self.socket = directory / "c.sock"
        self._binaries = binaries
        self._registry = registry
        self._log = directory / "containerd.log"
        self._process: Orphan | None = None
        tools_directory = directory / "bin"
        tools_directory.mkdir()
        self.shim = tools_directory / "containerd-shim-orlop-v2"
        # As the Debian package has it.
        self.shim.write_text(
            f"#!{sys.executable} -IS\nimport sys\nsys.path.append({os.fspath(SOURCES)!r})\n"
            "from orlop.shim.command.main import command\ncommand()\n"
        )
        self.shim.chmod(0o755)
        path = os.pathsep.join(map(os.fspath, (tools_directory, binaries)))
        self.env = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
        self.env["ORLOP_STATE"] = os.fspath(state)
        self._bridge = f"shm{os.urandom(3).hex()}"
        (directory / "config.toml").write_text(self._config())

    def _hosts(self) -> Path:
        for host in images.HOSTS:
            place = self.directory / "certs.d" / host
            place.mkdir(parents=True)
            url = f"http://{self._registry}/v2/{host}"
            (place / "hosts.toml").write_text(
                f'server = "{url}"\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\n'
                "override_path = true\n"
            )
        return self.directory / "certs.d"

    def _config(self) -> str:
        """Of version 2, which 1.6, 1.7 and 2.x read."""
        cri = "plugins.'io.containerd.grpc.v1.cri'"
        runtimes = f"{cri}.containerd.runtimes"
        network = bridged.conflist("test", self._bridge, bridged.any_subnet(), self.directory / "ipam")
        cni = bridged.write(self.directory / "cni", network)
        return (
            f'version = 2\nroot = "{self.directory}/root"\nstate = "{self.directory}/state"\n'
            f'[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{self.socket}.ttrpc"\n'
            f'[{cri}]\nsandbox_image = "{PAUSE}"\nrestrict_oom_score_adj = true\nstream_server_port = "0"\n'
            f'[{cri}.registry]\nconfig_path = "{self._hosts()}"\n'
            f'[{cri}.cni]\nbin_dir = "{bridged.plugins()}"\nconf_dir = "{cni}"\n'
            f'[{cri}.containerd]\ndefault_runtime_name = "runc"\nsnapshotter = "overlayfs"\n'
            f'[{runtimes}.runc]\nruntime_type = "io.containerd.runc.v2"\n'
            + "".join(
                f'[{runtimes}.{name}]\nruntime_type = "{RUNTIME}"\nprivileged_without_host_devices = true\n'
                + (f'sandboxer = "{sandboxer}"\n' if sandboxer else "")
                for name, sandboxer in HANDLERS.items()
                if not sandboxer or self.release in WITH_SANDBOXERS
            )
        )

    def start(self) -> None:
        """Start it and wait until it serves."""
        argv = [self._binaries / "containerd", "--config", self.directory / "config.toml"]
        self._process = Orphan(argv, self._log, self.env)
        limit = time.monotonic() + START_TIMEOUT
        # The part of it that serves kubelets finds its pods again after it has begun to answer.
        while self("version", check=False).code or self._cri("info").returncode:
            if not self._process.alive or time.monotonic() > limit:
                raise tools.ToolError(f"containerd does not serve:\n{self.log_tail()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it; what it runs goes on."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a warning."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.end(number)
            self._process = None

    def log_tail(self, lines: int = 30) -> str:
        """The last of what it said, with 0 all."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def argv(self, *args: str) -> list[str]:
        """The command line of a ctr command."""
        return [os.fspath(self._binaries / "ctr"), "--address", os.fspath(self.socket), *args]

    def __call__(self, *args: str, stdin: bytes | None = None, check: bool = True) -> Done:
        return self.done(self.argv(*args), stdin=stdin, check=check)

    def done(
        self, argv: list[str], *, stdin: bytes | None = None, check: bool = True, lines: int = 30
    ) -> Done:
        """What a client of it gave; with ``check`` a failure is raised, with these last lines of its log."""
        done = Done(
            argv,
            subprocess.run(
                argv, input=stdin or b"", capture_output=True, timeout=TIMEOUT, env=self.env, check=False
            ),
        )
        if check:
            assert done.code == 0, f"{done}\n{self.log_tail(lines)}"
        return done

    def pull(self, image: str) -> None:
        """Pull an image from the registry of the tests."""
        self("image", "pull", "--hosts-dir", os.fspath(self.directory / "certs.d"), image)

    def remove_containers(self) -> None:
        """Remove what ctr has made."""
        for name in self("task", "ls", "-q", check=False).out.split():
            self("task", "kill", "-s", "KILL", name, check=False)
            self("task", "rm", "-f", name, check=False)
        for name in self("container", "ls", "-q", check=False).out.split():
            self("container", "rm", name, check=False)

    def _cri_argv(self, *args: str | Path) -> list[str | Path]:
        return [tools.cri_tools()[0], "-r", f"unix://{self.socket}", "-t", f"{TIMEOUT:.0f}s", *args]

    def _cri(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        argv = self._cri_argv(*args)
        return subprocess.run(argv, capture_output=True, text=True, env=self.env, check=False)

    def cri(self, *args: str | Path) -> str:
        """What a crictl command says."""
        done = self._cri(*args)
        assert done.returncode == 0, f"{done}\n{self.log_tail()}"
        return done.stdout.strip()

    @contextlib.contextmanager
    def cri_beside(self, *args: str | Path) -> Iterator[subprocess.Popen[bytes]]:
        """A crictl command that runs as long as the block."""
        nowhere = subprocess.DEVNULL
        with subprocess.Popen(
            self._cri_argv(*args), stdin=nowhere, stdout=nowhere, stderr=nowhere, env=self.env
        ) as running:
            try:
                yield running
            finally:
                running.kill()

    def remove_pods(self) -> None:
        """Remove what a kubelet has made."""
        for pod in self.cri("pods", "-q").split():
            self.cri("rmp", "-f", pod)

    def remove_all(self) -> None:
        """End it, and remove what it has mounted."""
        if self._process is not None:
            self.remove_containers()
            self.stop()
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True, check=False)


@contextlib.contextmanager
def containerd(directory: Path, release: str, state: Path, registry: str) -> Iterator[Containerd]:
    """containerd until the block ends, with nothing left of it."""
    one = Containerd(directory, release, state, registry)
    try:
        one.start()
        yield one
    finally:
        one.remove_all()
