"""A place of its own for one run: network, processes and mounts, in which podman and bats are installed.

Nothing of the machine's podman is seen or touched: mounts that end with the run hide its directories.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.conformance import tools
from tests.doors.podman import PROGRAM
from tests.node import Node
from tests.podman_system import image

PRIVATE = ("/run", "/var/lib/containers", "/var/lib/cni", "/var/tmp")
"""What podman and its network keep of state, besides its storage."""


def inside(init: Path, module: str, words: Iterable[str]) -> list[str]:
    """The command line of a Python module; its network, mounts and processes are its own, and end with it."""
    apart = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    # Without a first process that reaps, conmon would not be seen to end.
    return ["unshare", *apart, os.fspath(init), "--", sys.executable, "-m", module, *words]


def mount(*words: str) -> None:
    """Mount, or raise ToolError."""
    tools.run(["mount", *words])


def overlay(target: str, scratch: Path, *layers: Path) -> None:
    """Lay directories over another, the first on top."""
    upper, work = (scratch / f"{name}-{target.replace('/', '-')}" for name in ("upper", "work"))
    for path in (upper, work):
        path.mkdir(parents=True)
    lower = ":".join((*map(os.fspath, layers), target))
    mount("-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "orlop-test", target)


def hide_hybrid() -> None:
    """Hide the second hierarchy of control groups: crun refuses a host that has both kinds."""
    if Path("/sys/fs/cgroup/unified").is_mount():
        tools.run(["umount", "/sys/fs/cgroup/unified"])


def install(scratch: Path, roots: Iterable[Path]) -> None:
    """Lay what was unpacked over the machine's own files, for this run alone."""
    tools.run(["ip", "link", "set", "lo", "up"])
    for path in PRIVATE:
        Path(path).mkdir(parents=True, exist_ok=True)
        mount("-t", "tmpfs", "-o", "mode=1777" if path == "/var/tmp" else "mode=755", "orlop-test", path)
    Path("/run/lock").mkdir()
    _own_devices(scratch / "dev")
    roots = list(roots)
    overlay("/usr", scratch, *(root / "usr" for root in roots))
    # Libraries of packages that do not know yet that /lib is /usr/lib.
    old = [root / "lib" for root in roots if (root / "lib").is_dir() and not (root / "lib").is_symlink()]
    overlay("/usr/lib", scratch, *old)
    # A name that two packages of Debian fight for.
    Path("/usr/bin/nc").unlink(missing_ok=True)
    Path("/usr/bin/nc").symlink_to(tools.busybox())
    overlay("/etc", scratch, *(root / "etc" for root in roots if (root / "etc").is_dir()))


def _own_devices(directory: Path) -> None:
    """A /dev with the same devices, to which /dev/log can be added."""
    directory.mkdir()
    mount("-t", "tmpfs", "-o", "mode=755", "orlop-test", os.fspath(directory))
    for path in Path("/dev").iterdir():
        there, status = directory / path.name, path.lstat()
        if stat.S_ISLNK(status.st_mode):
            there.symlink_to(path.readlink())
        elif stat.S_ISDIR(status.st_mode):
            there.mkdir()
            mount("--rbind", os.fspath(path), os.fspath(there))
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            os.mknod(there, status.st_mode, status.st_rdev)
            there.chmod(stat.S_IMODE(status.st_mode))
    mount("--move", os.fspath(directory), "/dev")


@contextlib.contextmanager
def system_log() -> Iterator[None]:
    """Somebody who listens at /dev/log: aardvark-dns and netavark complain where nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind("/dev/log")

        def read() -> None:
            while end.recv(1 << 16) != b"end":
                pass

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            yield
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                other.sendto(b"end", "/dev/log")
            thread.join()


def write_settings(scratch: Path, registry: str, runtime: str, node: Node | None) -> None:
    """podman's settings, where it looks for them."""
    if node is not None:
        program = Path("/usr/bin") / runtime
        program.write_text(
            f'#!/bin/sh\nORLOP_STATE={node.scratch}/state exec {sys.executable} -IS -c "{PROGRAM}" "$@"\n'
        )
        program.chmod(0o755)
    tables: dict[str, dict[str, object]] = {
        "containers": {
            "log_driver": "k8s-file",
            # More than the machine's own cannot be had everywhere.
            "default_ulimits": ["nofile=1024:1024", "nproc=4096:4096"],
        },
        "network": {"network_backend": "netavark"},
        "engine": {
            "runtime": runtime,
            "runtime_supports_json": ["crun", runtime],
            "cgroup_manager": "cgroupfs",
            "events_logger": "file",
        },
        "engine.runtimes": {runtime: [f"/usr/bin/{runtime}"]},
    }
    lines = [
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    ]
    settings = Path("/etc/containers")
    (settings / "containers.conf").write_text("".join(lines))
    (settings / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
    other = image.PAUSE_IMAGE.partition("/")[0]
    here = {f"{image.HOST}/{image.USER}": image.USER, other: other}
    (settings / "registries.conf").write_text(
        "\n".join(
            f'[[registry]]\nprefix = "{name}"\nlocation = "{registry}/{there}"\ninsecure = true\n'
            for name, there in here.items()
        )
    )
    storage = {"driver": "overlay", "graphroot": f"{scratch}/storage", "runroot": "/run/containers/storage"}
    (settings / "storage.conf").write_text(
        "[storage]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in storage.items())
    )


def environment(scratch: Path, runtime: str) -> dict[str, str]:
    """What bats and podman are started with."""
    directory = scratch / "tmp"
    directory.mkdir(exist_ok=True)
    kept = {"TERM": "dumb", "HOME": os.fspath(scratch), "LANG": "C.UTF-8"}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {
        **kept,
        "PATH": path,
        # Not by the settings alone, in whose place some tests put others.
        "PODMAN": f"/usr/bin/podman --runtime /usr/bin/{runtime}",
        "TMPDIR": os.fspath(directory),
        "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        # No service manager runs here, whose timers would look at health.
        "DISABLE_HC_SYSTEMD": "true",
    }


def unmount(scratch: Path) -> None:
    """Undo what stands in the way of removing ``scratch``."""
    places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([point for point in places if point.startswith(f"{scratch}/")]):
        subprocess.run(["umount", "--lazy", point], check=False)
