"""A machine within the machine for one run: what happens in it ends with it, however it ends.

A kubelet writes kernel settings, directories below ``/var`` and cgroups, and wants ports of its own. So a
run has mount, network, process and cgroup namespaces of its own. Its processes die with the one that
started it; the namespaces take the mounts and the network with them; what then remains, a directory
and cgroups, is removed by the :mod:`janitor <tests.node_e2e.janitor>`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
ADDRESS, GATEWAY = "192.0.2.10", "192.0.2.1"
"""The node's own address, from the range kept for documentation, and a gateway that is not there."""

PROGRAM = "tests.node_e2e.enclosure"
# Into the cgroups first: the new cgroup namespace has them as its roots.
ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"'

SETTINGS = {
    "vm/overcommit_memory": "1\n",
    "vm/panic_on_oom": "0\n",
    "kernel/panic": "10\n",
    "kernel/panic_on_oops": "1\n",
    "kernel/keys/root_maxkeys": "1000000\n",
    "kernel/keys/root_maxbytes": "25000000\n",
}
"""Kernel settings that a kubelet writes: files stand in for them, so that the machine keeps its own."""

ABSENT = ("/usr/bin/systemd-run", "/usr/bin/journalctl")
"""Where the suite finds these, it starts the kubelet as a unit of the machine's systemd."""

KUBELET_ROOT = Path("/var/lib/kubelet")
POD_LOGS = Path("/var/log/pods")
OWN = (KUBELET_ROOT, POD_LOGS, Path("/var/log/containers"), Path("/var/lib/orlop-tenants"))
"""Directories that the run has for itself. Those that are not there are made, and stay, empty."""


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup hierarchy: its file system type, its mount options, where it is, and our place."""

    kind: str
    options: str
    mount: Path
    own: str

    def group(self, name: str) -> Path:
        """The directory of a new group. In version 1 it is below ours, whose limits it keeps to."""
        inner = self.own.strip("/") if self.kind == "cgroup" else ""
        return self.mount / inner / name


def hierarchies() -> list[Hierarchy]:
    """What is mounted at ``/sys/fs/cgroup``."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[frozenset(controllers.split(","))] = path
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ")
        place = Path(before.split()[4])
        kind, _, options = after.split()
        if kind not in ("cgroup", "cgroup2") or not place.is_relative_to(CGROUPS):
            continue
        parts = [part for part in options.split(",") if part not in ("rw", "ro", "xattr", "nsdelegate")]
        mine = own.get(frozenset(parts) if kind == "cgroup" else frozenset({""}), "/")
        # A mount that shows a part of its hierarchy shows our path from there.
        mine = "/" + os.path.relpath(mine, before.split()[3]) if before.split()[3] != "/" else mine
        found.append(Hierarchy(kind, ",".join(parts) if kind == "cgroup" else "", place, mine))
    return found


def weigh(group: Path, times: int) -> None:
    """Let a group have as much of busy processors as that many processes; alone it counts as one."""
    for file, one, most in (("cpu.shares", 1024, 262144), ("cpu.weight", 100, 10000)):
        if (group / file).exists():
            (group / file).write_text(str(min(one * times, most)))


def _make_groups(name: str, weight: int) -> list[Path]:
    groups = []
    for hierarchy in hierarchies():
        group = hierarchy.group(name)
        group.mkdir()
        groups.append(group)
        weigh(group, weight)
        # A new cpuset of version 1 has nothing, and takes no process.
        for file in ("cpuset.cpus", "cpuset.mems"):
            if hierarchy.kind == "cgroup" and (group / file).exists():
                (group / file).write_text((group.parent / file).read_text())
    return groups


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A short directory and cgroups of the same name; the janitor takes them away when the block ends.

    It also does when this process ends by a kill: it then reads the end of its input.
    """
    directory = Path(tempfile.mkdtemp(prefix="orlop-ne-", dir="/tmp"))
    directory.chmod(0o711)
    janitor = subprocess.Popen(
        [sys.executable, "-m", "tests.node_e2e.janitor", directory],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert janitor.stdin is not None
    try:
        yield directory
    finally:
        janitor.stdin.close()
        janitor.wait()


def start(
    directory: Path, command: Sequence[str], log: Path, weight: int, network: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in an enclosure over the directory. It ends when the thread that called this ends.

    At busy processors it has the share of ``weight`` processes. ``network`` is a network namespace to be
    in; without, it gets one of its own.
    """
    groups = _make_groups(directory.name, weight)
    argv: list[str] = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", ENTER, "sh"]
    argv += [*map(os.fspath, groups), "--"]
    argv += ["unshare", "--net"] if network is None else ["nsenter", f"--net={network}", "unshare"]
    argv += ["--mount", "--pid", "--cgroup", "--fork", "--kill-child", "--propagation", "slave"]
    argv += [sys.executable, "-m", PROGRAM, os.fspath(directory), "given" if network else "own", *command]
    with log.open("wb") as output:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def run(directory: Path, command: Sequence[str], log: Path, weight: int) -> int:
    """Run a command in an enclosure to its end, as :func:`start`; its exit code."""
    child = start(directory, command, log, weight)
    try:
        return child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


# --- inside ---------------------------------------------------------------------------------------------


def _call(*argv: str | Path) -> None:
    subprocess.run([os.fspath(part) for part in argv], check=True, stdin=subprocess.DEVNULL)


def _mount_cgroups(place: Path, mounted: Sequence[Hierarchy]) -> None:
    """Mount the hierarchies anew: in a cgroup namespace their roots are the run's own groups."""
    links = [path for path in CGROUPS.iterdir() if path.is_symlink()]
    if not any(one.mount == CGROUPS for one in mounted):
        _call("mount", "-t", "tmpfs", "-o", "mode=755", "cgroups", place)
    for one in sorted(mounted, key=lambda one: len(one.mount.parts)):
        target = place / one.mount.relative_to(CGROUPS)
        target.mkdir(exist_ok=True)
        options = f"none,{one.options}" if one.options.startswith("name=") else one.options
        _call("mount", "-t", one.kind, *(("-o", options) if options else ()), one.kind, target)
    if any(one.mount == CGROUPS for one in mounted):
        # Version 2 gives no controllers to children of a group that has processes of its own.
        (place / "init").mkdir()
        for pid in (place / "cgroup.procs").read_text().split():
            (place / "init" / "cgroup.procs").write_text(pid)
        for controller in (place / "cgroup.controllers").read_text().split():
            (place / "cgroup.subtree_control").write_text(f"+{controller}")
        return
    for link in links:
        (place / link.name).symlink_to(link.readlink())


def _mounts(directory: Path) -> None:
    mounted = hierarchies()
    _call("mount", "-t", "proc", "proc", "/proc")
    # A sysfs shows the network namespace that it was mounted in.
    fresh = directory / "sys"
    fresh.mkdir()
    _call("mount", "-t", "sysfs", "sysfs", fresh)
    _mount_cgroups(fresh / "fs/cgroup", mounted)
    # Not covered but gone: readers of the mount table would find the machine's groups first.
    _call("umount", "--recursive", "--lazy", "/sys")
    _call("mount", "--move", fresh, "/sys")
    _call("mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run")
    for place in OWN:
        place.mkdir(parents=True, exist_ok=True)
        own = directory / "var" / place.name
        own.mkdir(parents=True)
        _call("mount", "--bind", own, place)
    for name, text in SETTINGS.items():
        stand_in = directory / "settings" / name.replace("/", ".")
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(text)
        if Path("/proc/sys", name).exists():
            _call("mount", "--bind", stand_in, f"/proc/sys/{name}")
    (directory / "absent").touch(0o644)
    for program in ABSENT:
        if Path(program).exists():
            _call("mount", "--bind", directory / "absent", program)
    resolver = directory / "resolv.conf"
    resolver.write_text(f"nameserver {ADDRESS}\n")
    _call("mount", "--bind", resolver, "/etc/resolv.conf")
    # Pods' mounts propagate within the run and no further: what this is a slave of gets nothing.
    _call("mount", "--make-rshared", "/")


def _network() -> None:
    """An address and a default route, as a node has; what would leave the machine is refused at once."""
    _call("ip", "link", "set", "lo", "up")
    # Nobody is at the other end: not every kernel has dummy interfaces.
    _call("ip", "link", "add", "node0", "type", "veth", "peer", "name", "nowhere0")
    _call("ip", "address", "add", f"{ADDRESS}/24", "dev", "node0")
    for end in ("nowhere0", "node0"):
        _call("ip", "link", "set", end, "up")
    _call("ip", "route", "add", "default", "via", GATEWAY)
    for chain in ("OUTPUT", "FORWARD"):
        _call("iptables", "-A", chain, "-o", "node0", "-j", "REJECT")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")


def _be_init(command: Sequence[str]) -> int:
    """Run the command as the first process of its namespace, which has to bury everybody's children."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status)


def main() -> int:
    """``python -m tests.node_e2e.enclosure DIRECTORY own|given COMMAND...``, as :func:`start` does it."""
    directory, network, command = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    _mounts(directory)
    if network == "own":
        _network()
    program = shutil.which(command[0])
    return _be_init([program or command[0], *command[1:]])


if __name__ == "__main__":
    sys.exit(main())
