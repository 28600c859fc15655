"""Early boot: the file systems an agent needs, and the last act of the VM."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

from orlop.guest import paths
from orlop.linux import limits, syscalls
from orlop.linux.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_REC

_SECURE = MS_NOSUID | MS_NODEV | MS_NOEXEC
_MOUNTS = (
    ("proc", "/proc", "proc", _SECURE, ""),
    ("sysfs", "/sys", "sysfs", _SECURE, ""),
    ("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755"),
    ("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=0620,gid=5"),
    ("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),
    ("mqueue", "/dev/mqueue", "mqueue", _SECURE, ""),
    ("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755"),
    ("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=16m"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", _SECURE, "nsdelegate,memory_recursiveprot"),
)


def mounted() -> dict[str, str]:
    """Mount points and their file system types."""
    found = {}
    for line in paths.read_text("/proc/self/mounts").splitlines():
        _, target, kind, *_ = line.split(" ")
        found[target] = kind
    return found


def mount_all() -> None:
    """Mount what is missing. Idempotent."""
    if not os.path.exists("/proc/self"):
        syscalls.mount("proc", "/proc", "proc", _SECURE)
    present = mounted()
    for source, target, kind, flags, options in _MOUNTS:
        if present.get(target) == kind:
            continue
        with suppress(FileExistsError, OSError):
            os.mkdir(target)
        syscalls.mount(source, target, kind, flags, options)
    syscalls.mount("", "/", "", MS_REC | MS_PRIVATE)
    # A second proc that nothing is mounted on: without one in sight no user namespace may mount its own.
    if paths.PROC not in present:
        os.makedirs(paths.PROC, exist_ok=True)
        syscalls.mount("proc", paths.PROC, "proc", _SECURE)
    for directory in (paths.DISKS, paths.CONTAINERS, paths.SHARE, paths.VOLUMES, paths.SHM, paths.ETC):
        os.makedirs(directory, 0o755, exist_ok=True)


# Only what is critical goes to the console, which is slow; crashes are. No waiting where the kernel can
# do the same at once: a guest of few processors loses nothing by expedited RCU. And an idle guest shall be
# idle: no watchdog every four seconds, no statistics every second, no look at dirty pages every five.
_TUNING = (
    ("/proc/sys/kernel/printk", "3"),
    ("/sys/kernel/rcu_expedited", "1"),
    ("/proc/sys/kernel/watchdog", "0"),
    ("/proc/sys/vm/stat_interval", "120"),
    ("/proc/sys/vm/dirty_writeback_centisecs", "3000"),
)


def tune() -> None:
    """Set the kernel to what suits a small guest that is one of many; what it does not have is left."""
    for path, text in _TUNING:
        with suppress(OSError):
            paths.write_text(path, text)


# The host decides in which order its disks are used, and how much is written at a time.
_DISK_TUNING = (("scheduler", "none"), ("wbt_lat_usec", "0"))


def tune_disks() -> None:
    """The same for the disks that the kernel has found."""
    for disk in os.listdir("/sys/block"):
        for name, text in _DISK_TUNING:
            with suppress(OSError):
                paths.write_text(f"/sys/block/{disk}/queue/{name}", text)


# A kernel of little memory allows few signals to wait, too.
_OWN_LIMITS = (("SIGPENDING", 1 << 16),)


def raise_limits() -> None:
    """Give this process, and with it all that it starts, the limits that containers get."""
    for name, value in limits.KERNEL:
        with suppress(OSError):
            paths.write_text(f"/proc/sys/{name}", str(value))
    for name, value in (*limits.DEFAULTS, *_OWN_LIMITS):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
