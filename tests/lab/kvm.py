"""A computer whose KVM works, emulated: QEMU offers SVM and nested paging, so there is a /dev/kvm in it.

Its disk is the root of Debian 13 (see root.py) with Debian's kernel and systemd, written into an ext4 file
without mounting anything. It boots, runs a command in the checkout, sends what that says
through a serial port, and goes off. No time that it takes means anything: its VMs are emulated twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from tests.conformance.tools import ToolError, cache_dir, run
from tests.lab import root
from tests.lab.root import INSIDE, say

PACKAGES = (
    "linux-image-amd64",
    "initramfs-tools",
    "systemd-sysv",
    "udev",
    "dbus",
    "apparmor",
    "docker-registry",
)
MACHINE = Path(__file__).with_name("machine")
SIZE = "8G"
"""Of the disk, which is sparse."""

MEMORY_MIB = 6144
CPU = "max,-la57"
CONFIG = """# All takes its time here.
[vm]
boot_timeout = 600
[vm.qemu]
kvm_probe_timeout = 300
"""
_KERNEL = "root=/dev/vda rw console=ttyS0 panic=-1 tsc=reliable no_timer_check systemd.show_status=false"
# What an initial RAM disk needs to find its root; Debian's default brings every driver there is.
_INITRAMFS = "MODULES=list\nCOMPRESS=zstd\n"
_MODULES = "virtio_pci\nvirtio_blk\next4\n"
_ENDED = re.compile(r"^lab: ended with (\d+)", re.M)
_CACHED = ("cri-tools", "busybox-1", "compiled", "registry")


def run_in(command: str, minutes: int) -> int:
    """Boot the machine, run a command in its checkout as root; its exit code. Raises ToolError."""
    with root.alone("kvm-lab") as place:
        disk = place / "disk.img"
        # Others can have the root while the machine runs.
        with root.debian13() as plain:
            root.make_tools()
            tree = _tree(plain, place)
            _place(plain, tree, command)
            say("writing the machine's disk")
            disk.unlink(missing_ok=True)
            run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, disk, SIZE])
        try:
            return _boot(tree, disk, place, minutes)
        finally:
            disk.unlink(missing_ok=True)


def _tree(plain: Path, place: Path) -> Path:
    """The machine's tree: a copy of the root with what a whole machine needs besides."""
    tree, stamp = place / "tree", place / "inputs"
    recipe = inspect.getsource(_tree) + " ".join(PACKAGES)
    inputs = hashlib.sha256((plain / "var/lib/dpkg/status").read_bytes() + recipe.encode()).hexdigest()
    if tree.exists() and stamp.exists() and stamp.read_text() == inputs:
        return tree
    say("installing a kernel and systemd in a copy of the root (minutes, once)")
    stamp.unlink(missing_ok=True)
    run(["rm", "-rf", "--one-file-system", tree])
    run(["cp", "-a", "--reflink=auto", plain, tree])
    settings = tree / "etc/initramfs-tools"
    (settings / "conf.d").mkdir(parents=True)
    (settings / "conf.d/lab").write_text(_INITRAMFS)
    (settings / "modules").write_text(_MODULES)
    root.enter(tree, ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES])
    run(["rm", "-rf", tree / "var/cache/apt/archives"])
    stamp.write_text(inputs)
    return tree


def _place(plain: Path, tree: Path, command: str) -> None:
    """Put the checkout, its environment, the guest, the tools of the tests and what to run into the tree."""
    for name in (INSIDE, "var/lib/orlop/guest"):
        run(["rm", "-rf", tree / name])
        run(["cp", "-a", plain / name, tree / name])
    cached = tree / "root/.cache/orlop"
    for name in _CACHED:
        run(["rm", "-rf", cached / name])
        run(["cp", "-a", cache_dir() / name, cached / name])
    units = tree / "etc/systemd/system"
    shutil.copy(MACHINE / "orlop-lab.service", units)
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    for path, target in (
        (wants / "orlop-lab.service", "../orlop-lab.service"),
        (units / "docker-registry.service", "/dev/null"),
    ):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    (tree / "etc/hostname").write_text("lab\n")
    (tree / "etc/orlop").mkdir(exist_ok=True)
    (tree / "etc/orlop/config.toml").write_text(CONFIG)
    (tree / "etc/orlop-lab").write_text(command + "\n")


def _boot(tree: Path, disk: Path, place: Path, minutes: int) -> int:
    (kernel,), (initrd,) = (tree / "boot").glob("vmlinuz-*"), (tree / "boot").glob("initrd.img-*")
    console, said = place / "console.log", place / "said.log"
    argv = [
        *("nice", "-n", "10", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", CPU),
        *("-smp", "2", "-m", str(MEMORY_MIB), "-rtc", "base=utc"),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe,discard=unmap"),
        *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
        *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
        *("-chardev", f"file,id=said,path={said}", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=said,name=org.orlop.lab"),
        *("-kernel", os.fspath(kernel), "-initrd", os.fspath(initrd), "-append", _KERNEL),
    ]
    said.write_bytes(b"")
    say("booting")
    started = time.monotonic()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as machine:
        try:
            end = _follow(machine, said, started + minutes * 60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                machine.kill()
    if end is None:
        tail = "\n".join(console.read_text(errors="replace").splitlines()[-30:])
        raise ToolError(
            f"the machine did not say how it ended, within {minutes} minutes; its console:\n{tail}"
        )
    return end


def _follow(machine: subprocess.Popen[bytes], said: Path, deadline: float) -> int | None:
    """Print what the machine says until it goes off; the exit code that it named, if it did."""
    text = ""
    with said.open(errors="replace") as log:
        while True:
            running = machine.poll() is None and time.monotonic() < deadline
            more = log.read()
            print(more, end="", flush=True)
            text += more
            if not running:
                break
            time.sleep(0.5)
    found = _ENDED.search(text)
    return int(found[1]) if found else None
