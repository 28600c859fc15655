"""A node of one's own for tests: a private daemon with its pod network, a registry, and crictl.

    with node(scratch, handler="process") as one:
        one.crictl("pull", BUSYBOX)

Everything is below one short directory (Unix sockets have paths of 107 bytes at most), so that
:meth:`Node.leaks` can say what a run has left behind anywhere on the machine.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orlop.cli.demo import lending, privatedaemon
from orlop.config import Config
from orlop.host.process import pid_alive, process_start_time
from tests.conformance import images, tools
from tests.patience import PATIENCE, vm_section

BUSYBOX = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
NGINX = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
OWN = "registry.k8s.io/orlop-test"

START_TIMEOUT = 60.0 * PATIENCE
STOP_TIMEOUT = 30.0 * PATIENCE
CALL_TIMEOUT = 200.0 * PATIENCE
WARM_MOST = 6
"""Processes and mounts that a pool of the default size may have, one being refilled."""


class Done:
    """What a command gave."""

    def __init__(self, argv: list[str], done: subprocess.CompletedProcess[bytes]) -> None:
        self.argv = argv
        self.code = done.returncode
        self.raw = done.stdout
        self.out = done.stdout.decode(errors="replace")
        self.err = done.stderr.decode(errors="replace")

    def __repr__(self) -> str:
        return f"<{' '.join(self.argv[-6:])}: exit {self.code}\nstdout: {self.out}\nstderr: {self.err}>"


class Node:
    """A private daemon, started, stopped, killed and started again."""

    def __init__(self, settings: privatedaemon.Settings) -> None:
        self.settings = settings
        self.scratch = settings.scratch
        self.socket = settings.socket
        self.cgroup_parent = f"/orlop-test-{settings.scratch.name}"
        self.pid = 0
        self._start_time = 0
        self._crictl = os.fspath(tools.cri_tools()[0])
        build_guest(settings.base)
        privatedaemon.write_files(settings)

    def start(self) -> None:
        """Start the daemon and wait until it serves. It is no child of ours, as in real life."""
        script = '"$@" </dev/null >>"$0" 2>&1 & echo $!'
        argv = [sys.executable, "-m", "orlop.daemon", "--config", os.fspath(self.scratch / "config.toml")]
        done = subprocess.run(
            ["setsid", "sh", "-c", script, os.fspath(self.settings.log), *argv],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        self.pid = int(done.stdout)
        self._start_time = process_start_time(self.pid)
        limit = time.monotonic() + START_TIMEOUT
        while True:
            if not self.alive():
                raise AssertionError(f"the daemon ended at once:\n{self.settings.log_tail(40)}")
            if Path(self.socket).exists() and self.crictl("version", check=False).code == 0:
                return
            if time.monotonic() > limit:
                raise AssertionError(f"the daemon does not serve:\n{self.settings.log_tail(40)}")
            time.sleep(0.1)

    def wait_ready(self, timeout: float = 180.0 * PATIENCE) -> None:
        """Wait until both conditions of the runtime hold."""
        limit = time.monotonic() + timeout
        while True:
            conditions = self.json("info")["status"]["conditions"]
            bad = [one for one in conditions if not one["status"]]
            if not bad:
                return
            assert time.monotonic() < limit, (
                f"not ready after {timeout:g} s: {bad}\n{self.settings.log_tail()}"
            )
            time.sleep(0.5)

    def alive(self) -> bool:
        """Whether the daemon runs."""
        return pid_alive(self.pid, self._start_time)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal and wait for the end; nothing to do for one that has ended."""
        if not self.alive():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        limit = time.monotonic() + STOP_TIMEOUT
        while self.alive():
            if time.monotonic() > limit:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(
                    f"the daemon did not end on {number.name}:\n{self.settings.log_tail(30)}"
                )
            time.sleep(0.05)

    def kill(self) -> None:
        """End it without a warning."""
        self.stop(signal.SIGKILL)

    # --- crictl -----------------------------------------------------------------------------------

    def crictl(
        self, *args: str, check: bool = True, timeout: float = CALL_TIMEOUT + 40, stdin: bytes = b""
    ) -> Done:
        """Run crictl against this daemon."""
        argv = self.crictl_argv(*args)
        # A file, not the user's: /etc/crictl.yaml of the machine must not matter.
        env = {**os.environ, "CRI_CONFIG_FILE": os.fspath(self._crictl_config())}
        done = Done(
            argv,
            subprocess.run(argv, input=stdin, capture_output=True, timeout=timeout, env=env, check=False),
        )
        if check and done.code != 0:
            raise AssertionError(f"{done}\n{self.settings.log_tail()}")
        return done

    def crictl_argv(self, *args: str) -> list[str]:
        """The command line of a crictl command against this daemon."""
        endpoint = f"unix://{self.socket}"
        options = ["--timeout", f"{CALL_TIMEOUT:.0f}s"]
        options += ["--runtime-endpoint", endpoint, "--image-endpoint", endpoint]
        return [self._crictl, *options, *args]

    def _crictl_config(self) -> Path:
        path = self.scratch / "crictl.yaml"
        if not path.exists():
            path.write_text(f"timeout: {CALL_TIMEOUT:.0f}\n")
        return path

    def json(self, *args: str) -> Any:
        """A crictl command with JSON output, decoded."""
        return json.loads(self.crictl(*args, "-o", "json").out)

    def pull(self, reference: str) -> None:
        """Pull an image if it is not here."""
        if self.crictl("inspecti", "-q", reference, check=False).code != 0:
            self.crictl("pull", reference)

    def _file(self, kind: str, value: Mapping[str, Any]) -> str:
        path = self.scratch / f"{kind}-{os.urandom(4).hex()}.json"
        path.write_text(json.dumps(value))
        return os.fspath(path)

    def pod_config(self, name: str = "", **more: Any) -> dict[str, Any]:
        """A pod's configuration with a log directory and a cgroup parent of this node."""
        name = name or f"pod-{os.urandom(3).hex()}"
        config: dict[str, Any] = {
            "metadata": {"name": name, "uid": os.urandom(8).hex(), "namespace": "e2e", "attempt": 0},
            "hostname": name,
            "log_directory": os.fspath(self.scratch / "logs" / name),
            "linux": {"cgroup_parent": self.cgroup_parent, "security_context": {}},
        }
        linux = more.pop("linux", {})
        config["linux"] |= linux
        return config | more

    def run_pod(self, config: Mapping[str, Any] | None = None, handler: str = "") -> str:
        """``runp``; returns the pod's id."""
        args = ["runp", *(("--runtime", handler) if handler else ())]
        done = self.crictl(*args, self._file("pod", config or self.pod_config()))
        return done.out.strip().splitlines()[-1]

    def try_pod(self, config: Mapping[str, Any], handler: str = "") -> Done:
        """``runp`` that may fail."""
        args = ["runp", *(("--runtime", handler) if handler else ())]
        return self.crictl(*args, self._file("pod", config), check=False)

    def create(self, pod_id: str, pod: Mapping[str, Any], image: str, *command: str, **more: Any) -> str:
        """``create``; returns the container's id. ``more`` are fields of ContainerConfig."""
        return self.try_create(pod_id, pod, image, *command, check=True, **more).out.strip().splitlines()[-1]

    def try_create(
        self, pod_id: str, pod: Mapping[str, Any], image: str, *command: str, check: bool = False, **more: Any
    ) -> Done:
        """``create`` that may fail."""
        name = f"ctr-{os.urandom(3).hex()}"
        config = {
            "metadata": {"name": name, "attempt": 0},
            "image": {"image": image},
            "command": list(command),
            "log_path": f"{name}.log",
            "linux": {},
            **more,
        }
        files = self._file("container", config), self._file("pod", pod)
        return self.crictl("create", pod_id, *files, check=check)

    def run(self, image: str, *command: str, handler: str = "", **more: Any) -> tuple[str, str]:
        """A pod with one started container: their ids."""
        self.pull(image)
        pod = self.pod_config()
        pod_id = self.run_pod(pod, handler)
        container = self.create(pod_id, pod, image, *command, **more)
        self.crictl("start", container)
        return pod_id, container

    def status(self, container: str) -> dict[str, Any]:
        """The container's status."""
        found: dict[str, Any] = json.loads(self.crictl("inspect", container).out)["status"]
        return found

    def pod_status(self, pod_id: str) -> dict[str, Any]:
        """The pod's status."""
        found: dict[str, Any] = json.loads(self.crictl("inspectp", pod_id).out)["status"]
        return found

    def wait_exit(self, container: str, timeout: float = 60 * PATIENCE) -> dict[str, Any]:
        """The status of a container that has ended, or will soon."""
        limit = time.monotonic() + timeout
        while True:
            status = self.status(container)
            if status["state"] == "CONTAINER_EXITED":
                return status
            assert time.monotonic() < limit, f"container {container} still runs after {timeout:g} s"
            time.sleep(0.1)

    def wait_log(self, container: str, text: str, timeout: float = 60 * PATIENCE) -> str:
        """The container's log once ``text`` is in it."""
        limit = time.monotonic() + timeout
        while True:
            done = self.crictl("logs", container)
            if text in done.out + done.err:
                return done.out + done.err
            assert time.monotonic() < limit, f"the log of {container} lacks {text!r}: {done}"
            time.sleep(0.1)

    def remove_pod(self, pod_id: str) -> None:
        """Stop and remove a pod."""
        self.crictl("stopp", pod_id)
        self.crictl("rmp", pod_id)

    def remove_all(self) -> None:
        """Stop and remove every pod."""
        for pod_id in self.crictl("pods", "-q").out.split():
            self.crictl("rmp", "-f", pod_id)

    # --- what is left -----------------------------------------------------------------------------

    def leaks(self) -> list[str]:
        """What pods of this node have left on the machine; the daemon may run or not."""
        marks = (os.fspath(self.scratch), self.settings.bridge, self.cgroup_parent)
        return [
            *_processes(marks, {os.getpid(), self.pid}),
            *_mounts(marks[0]),
            *_loop_devices(marks[0]),
            *_leases(self.scratch / "ipam"),
            *_cgroups(self.cgroup_parent.strip("/")),
            *_bridge_ports(self.settings.bridge),
            *_firewall_rules(self.settings.bridge),
        ]

    def wait_no_leaks_but_warm(self, timeout: float = 60.0 * PATIENCE) -> None:
        """As :meth:`wait_no_leaks`, with the daemon's pool of ready VMs and their namespaces allowed."""

        def warm(line: str) -> bool:
            return (line.startswith("process") and "qemu-system" in line) or line.startswith("mount: ")

        limit = time.monotonic() + timeout
        while True:
            found = self.leaks()
            left = [line for line in found if not warm(line)]
            if not left and sum(map(warm, found)) <= WARM_MOST:
                return
            assert time.monotonic() < limit, "left behind:\n" + "\n".join(found)
            time.sleep(0.2)

    def wait_no_leaks(self, timeout: float = 60.0 * PATIENCE) -> None:
        """Fail when something is still there after a little while."""
        limit = time.monotonic() + timeout
        while found := self.leaks():
            assert time.monotonic() < limit, "left behind:\n" + "\n".join(found)
            time.sleep(0.2)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _processes(marks: tuple[str, ...], ours: set[int]) -> list[str]:
    """Processes whose command line, working directory, root or cgroup speaks of this node."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) in ours:
            continue
        command = _read(entry / "cmdline")
        links = ""
        for name in ("cwd", "root"):
            with contextlib.suppress(OSError):
                links += os.fspath((entry / name).readlink()) + " "
        # The registry, the daemon and whatever started the tests are not what a pod has left.
        if not command or "orlop.daemon" in command or "docker-registry" in command or "pytest" in command:
            continue
        if any(mark in command + links + _read(entry / "cgroup") for mark in marks):
            found.append(f"process {entry.name}: {command[:200]}")
    return found


def _mounts(mark: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = [line.split()[4] for line in lines if mark in line]
    # The node's own disk, if it has one, was there before.
    return [f"mount: {place}" for place in places if place != mark]


def _loop_devices(mark: str) -> list[str]:
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    return [f"loop device: {file}" for file in files if mark in _read(file)]


def _leases(directory: Path) -> list[str]:
    if not directory.exists():
        return []
    return [
        f"IP lease: {path}" for path in directory.rglob("*") if re.fullmatch(r"[0-9.]+|[0-9a-f:]+", path.name)
    ]


def _cgroups(mark: str) -> list[str]:
    """Groups below the parent; the parent itself belongs to the caller, as it does to a kubelet."""
    found = []
    for top in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        parent = top / mark
        if parent.is_dir():
            # Not rglob: one that goes while it is looked at is an error there.
            found += [f"cgroup: {path}" for path, _, _ in os.walk(parent) if path != os.fspath(parent)]
    return found


def _bridge_ports(bridge: str) -> list[str]:
    directory = Path("/sys/class/net") / bridge / "brif"
    return (
        [f"interface {path.name} on {bridge}" for path in directory.iterdir()] if directory.exists() else []
    )


def _firewall_rules(mark: str) -> list[str]:
    done = subprocess.run(["iptables-save"], capture_output=True, text=True, check=False)
    return [f"iptables: {line}" for line in done.stdout.splitlines() if mark in line]


def _remove_cgroups(mark: str) -> None:
    for top in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        with contextlib.suppress(OSError):
            (top / mark).rmdir()


_SUBNETS: set[ipaddress.IPv4Network] = set()
"""The pod networks of this process' nodes, of which some may have made no bridge yet."""


def _own_directory(prefix: str) -> Path:
    """A new one below /tmp, whose name gives its node a pod network that nobody here has: there are 256."""
    done = subprocess.run(["ip", "-json", "-4", "address"], capture_output=True, check=True)
    addresses = [one for link in json.loads(done.stdout) for one in link.get("addr_info", ())]
    taken = {
        ipaddress.ip_network((one["local"], one["prefixlen"]), strict=False)
        for one in addresses
        if "local" in one
    }
    while True:
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
        subnet = privatedaemon.Settings(scratch=directory).subnet
        if subnet not in taken | _SUBNETS:
            _SUBNETS.add(subnet)
            return directory
        directory.rmdir()


@contextlib.contextmanager
def scratch_directory(prefix: str, size_mib: int = 0) -> Iterator[Path]:
    """A short directory below /tmp, removed afterwards without crossing into what is mounted there.

    With ``size_mib`` it is a disk of its own, of that size, in memory.
    """
    directory = _own_directory(prefix)
    if size_mib:
        options = f"size={size_mib}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "orlop-test", directory], check=True)
    # The root of a pod in a user namespace is nobody here, and must pass through.
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        _SUBNETS.discard(privatedaemon.Settings(scratch=directory).subnet)
        if size_mib:
            subprocess.run(["umount", "--lazy", directory], check=False)
        if os.environ.get("ORLOP_TEST_KEEP"):
            print(f"kept: {directory}", file=sys.stderr)
        else:
            subprocess.run(["rm", "-rf", "--one-file-system", directory], check=False)


def settings_for(
    scratch: Path, registry: str, *, handler: str = "vm", extra: Mapping[str, Mapping[str, Any]] | None = None
) -> privatedaemon.Settings:
    """The settings of a private daemon whose registry hosts are served by ``registry``.

    Guest image and template are those of the machine, or of the root in ``$ORLOP_TEST_BASE``.
    """
    mirrors = {host: f"{registry}/{host}" for host in images.HOSTS}
    more = {name: dict(values) for name, values in (extra or {}).items()}
    # A pool that grows with what the tests before asked for would look like what a test has left.
    more["vm"] = vm_section() | {"pool": {"max_size": 2}} | more.get("vm", {})
    return privatedaemon.Settings(
        scratch=scratch, mirrors=mirrors, handler=handler, base=base_config(), extra=more
    )


def base_config() -> Config:
    """Whose guest image and template nodes borrow."""
    return Config(root=os.environ.get("ORLOP_TEST_BASE") or Config().root)


def build_guest(base: Config) -> None:
    """Build the guest image. Quick when it is there; a daemon refuses one of another version of the agent."""
    with tempfile.TemporaryDirectory(prefix="orlop-base-") as scratch:
        file = Path(scratch) / "config.toml"
        file.write_text(f"root = {json.dumps(base.root)}\n")
        tools.run([sys.executable, "-m", "orlop.cli.main", "guest", "build", "--config", file])


def _clear(one: Node, *, forgive: bool) -> None:
    """Remove the pods and end the daemon; after a failed test its own failure counts, not this one's."""
    try:
        if not one.alive():
            one.start()
        one.remove_all()
    except (AssertionError, subprocess.SubprocessError):
        if not forgive:
            raise
    finally:
        one.stop()


@contextlib.contextmanager
def node(
    registry: str,
    *,
    handler: str = "vm",
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    prefix: str = "orlop-e2e-",
    size_mib: int = 0,
) -> Iterator[Node]:
    """A running node, with ``size_mib`` on a disk of that size.

    At the end its pods are removed, and nothing of it may be left.
    """
    with scratch_directory(prefix, size_mib) as scratch:
        one = Node(settings_for(scratch, registry, handler=handler, extra=extra))
        try:
            one.start()
            yield one
        except BaseException:
            print(f"--- the daemon's log\n{one.settings.log_tail(60)}", file=sys.stderr)
            _clear(one, forgive=True)
            raise
        else:
            _clear(one, forgive=False)
        finally:
            lending.give_back(one.settings.base, one.settings.root)
            try:
                # A template or a pool ends with the daemon; so does everything else.
                one.wait_no_leaks()
            finally:
                subprocess.run(
                    ["ip", "link", "delete", one.settings.bridge], capture_output=True, check=False
                )
                _remove_cgroups(one.cgroup_parent.strip("/"))
