"""What only the lab's machine has: a KVM that works, systemd, control groups version 2."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import images, tools
from tests.lab.kvm import CONFIG
from tests.node import BUSYBOX, node
from tests.patience import PATIENCE

BIN = Path(".venv/bin").absolute()
CGROUPS = Path("/sys/fs/cgroup")
UNIT = Path("/etc/systemd/system/orlopd.service")


@pytest.fixture(scope="session")
def registry() -> Iterator[str]:
    with images.serve(images.storage(), f"127.0.0.1:{tools.free_port()}") as address:
        yield address


def sh(*argv: str) -> str:
    """What a command says; it has to succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def test_doctor_says_kvm() -> None:
    found = sh(str(BIN / "orlop"), "doctor")
    (line,) = [line for line in found.splitlines() if " accelerator " in line]
    assert line.split()[:3] == ["ok", "accelerator", "kvm:"]


@pytest.fixture
def service(registry: str, tmp_path: Path) -> Iterator[None]:
    """orlopd as docs/operations.md installs it, pulling from ``registry``."""
    (tmp_path / "registries.conf").write_text(images.registries_conf(registry))
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    config = Path("/etc/orlop/config.toml")
    files = f'registries_conf = "{tmp_path}/registries.conf"\npolicy = "{tmp_path}/policy.json"'
    config.write_text(f"{CONFIG}[images]\n{files}\n")
    for name in ("orlop", "orlopd"):
        link = Path("/usr/bin") / name
        link.unlink(missing_ok=True)
        link.symlink_to(BIN / name)
    UNIT.write_bytes(Path("src/orlop/cli/node/data/orlopd.service").read_bytes())
    sh("systemctl", "daemon-reload")
    sh("systemctl", "start", "orlopd")
    try:
        yield
    finally:
        print(sh("journalctl", "-u", "orlopd", "--no-pager", "-n", "60"))
        sh("systemctl", "stop", "orlopd")
        UNIT.unlink()
        sh("systemctl", "daemon-reload")
        config.write_text(CONFIG)


def main_pid() -> int:
    return int(sh("systemctl", "show", "-P", "MainPID", "orlopd"))


def run_when_ready(*argv: str) -> str:
    """Run a pod as soon as the template is there."""
    limit = time.monotonic() + 300 * PATIENCE
    while True:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            return done.stdout
        assert time.monotonic() < limit, done.stderr
        time.sleep(5)


def test_a_pod_outlives_its_daemon_under_systemd(service: None) -> None:
    """READY=1 was believed, or the start would have failed; SIGKILL and a restart leave the pod alone."""
    run_when_ready("orlop", "run", "-d", "--name", "web", BUSYBOX, "sleep", "100000")
    boot = sh("orlop", "exec", "web", "cat", "/proc/sys/kernel/random/boot_id")
    daemon = main_pid()
    machines = sh("pgrep", "-f", "qemu-system-x86_64.*-accel kvm").split()
    sh("systemctl", "kill", "-s", "KILL", "orlopd")
    limit = time.monotonic() + 30 * PATIENCE
    while main_pid() in (0, daemon) or not Path("/run/orlop/orlop.sock").exists():
        assert time.monotonic() < limit, "systemd has not started it again"
        time.sleep(0.5)
    assert run_when_ready("orlop", "exec", "web", "cat", "/proc/sys/kernel/random/boot_id") == boot
    sh("systemctl", "restart", "orlopd")
    assert run_when_ready("orlop", "exec", "web", "cat", "/proc/sys/kernel/random/boot_id") == boot
    assert set(machines) & set(sh("pgrep", "-f", "qemu-system-x86_64.*-accel kvm").split())
    sh("orlop", "rm", "-f", "web")


def test_the_systemd_cgroup_driver(registry: str) -> None:
    """Limits arrive in the slice that was named, statistics come from it, and it goes with the pod."""
    limits = {"memory_limit_in_bytes": 64 << 20, "cpu_quota": 50000, "cpu_period": 100000}
    with node(registry, handler="process", extra={"top": {"cgroup_driver": "systemd"}}) as one:
        one.wait_ready()
        one.pull(BUSYBOX)
        pod = one.pod_config(linux={"cgroup_parent": "lab-pods.slice"})
        pod_id = one.run_pod(pod)
        container = one.create(pod_id, pod, BUSYBOX, "sleep", "100000", linux={"resources": limits})
        one.crictl("start", container)
        (group,) = (CGROUPS / "lab.slice/lab-pods.slice").glob(f"*{container}*.scope")
        assert (group / "memory.max").read_text() == f"{64 << 20}\n"
        assert (group / "cpu.max").read_text() == "50000 100000\n"
        assert (group / "cgroup.procs").read_text().split()
        found = sh("systemctl", "show", "-P", "ActiveState", group.name)
        assert found == "active\n"
        (stats,) = one.json("stats", container)["stats"]
        assert int(stats["memory"]["workingSetBytes"]["value"]) > 0
        one.remove_pod(pod_id)
        limit = time.monotonic() + 10 * PATIENCE
        while group.exists():
            assert time.monotonic() < limit, "the scope is still there"
            time.sleep(0.2)
