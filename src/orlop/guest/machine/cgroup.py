"""Control groups, version 2: one for the pod, below it one for each container, and one for all of those that
have no memory limit.

See the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
from contextlib import suppress

from orlop.guest import paths
from orlop.guest.paths import read_text, write_text
from orlop.wire.messages import Refused
from orlop.wire.values import GuestLimits

SMALL_MEMORY = 48 << 20
"""Below this a memory limit waits until exec: the interpreter that sets up a container needs some."""

_WANTED = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")


class GuestCgroup:
    """One control group. The object owns the directory; :meth:`remove` deletes it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def create(self) -> None:
        """Make the directory, or take the one that is there."""
        os.makedirs(self.path, exist_ok=True)

    def delegate(self) -> None:
        """Let groups below this one have every controller there is."""
        available = read_text(f"{self.path}/cgroup.controllers").split()
        wanted = [f"+{name}" for name in _WANTED if name in available]
        if wanted:
            write_text(f"{self.path}/cgroup.subtree_control", " ".join(wanted))

    def open(self) -> int:
        """A descriptor of the directory, to fork into."""
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def add(self, pid: int) -> None:
        """Move a process here."""
        write_text(f"{self.path}/cgroup.procs", str(pid))

    def write(self, name: str, value: str) -> None:
        """Write a file; nothing where the kernel does not have it, or does not take the value."""
        with suppress(OSError):
            write_text(f"{self.path}/{name}", value)

    def read(self, name: str) -> str:
        """A file's text, "" when the kernel does not have it."""
        try:
            return read_text(f"{self.path}/{name}")
        except (FileNotFoundError, OSError):
            return ""

    def number(self, name: str) -> int:
        """A file that holds one number; 0 for "max" and when there is no such file."""
        text = self.read(name).strip()
        return int(text) if text.isdecimal() else 0

    def pairs(self, name: str) -> dict[str, int]:
        """A file of "key number" lines."""
        result = {}
        for line in self.read(name).splitlines():
            key, _, value = line.partition(" ")
            if value.isdecimal():
                result[key] = int(value)
        return result

    def pids(self) -> list[int]:
        """All processes here, and in groups that the container made below."""
        found: list[int] = []
        for directory, _, _ in os.walk(self.path):
            try:
                found += [int(word) for word in read_text(f"{directory}/cgroup.procs").split()]
            except OSError:
                continue
        return found

    def freeze(self, *, frozen: bool) -> None:
        """Have all processes here and below stop where they are, or go on. The kernel takes its time."""
        write_text(f"{self.path}/cgroup.freeze", "1" if frozen else "0")

    @property
    def frozen(self) -> bool:
        """Whether all of them stand still."""
        return self.pairs("cgroup.events").get("frozen", 0) == 1

    def kill(self) -> None:
        """Kill all processes here and below. Idempotent."""
        try:
            write_text(f"{self.path}/cgroup.kill", "1")
        except FileNotFoundError:
            for pid in self.pids():
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue

    def remove(self) -> bool:
        """Kill what is left and remove the directory. False while processes are still dying."""
        try:
            self.kill()
            for directory, _, _ in os.walk(self.path, topdown=False):
                os.rmdir(directory)
        except OSError:
            # A group that the container made below may have gone while it was looked at.
            return not os.path.exists(self.path)
        return True

    def apply(self, resources: GuestLimits, *, memory: bool = True) -> None:
        """Set limits; :class:`Refused` when the kernel does not take one."""
        for name, value in settings(resources, memory=memory):
            try:
                write_text(f"{self.path}/{name}", value)
            except FileNotFoundError:
                if "." not in name or name.startswith("cgroup."):
                    raise
                raise Refused("invalid", f"the guest's kernel has no cgroup file {name}") from None
            except OSError as error:
                raise Refused("invalid", f"cannot set {name} to {value!r}: {error.strerror}") from error


def _limit(value: int) -> str:
    return "max" if value < 0 else str(value)


def settings(resources: GuestLimits, *, memory: bool = True) -> list[tuple[str, str]]:
    """The files to write for ``resources``, in order. Without ``memory``, all but the memory limits."""
    found: list[tuple[str, str]] = []
    if resources.cpu_weight:
        found.append(("cpu.weight", str(resources.cpu_weight)))
    if resources.cpu_quota_us or resources.cpu_period_us:
        period = f" {resources.cpu_period_us}" if resources.cpu_period_us else ""
        quota = _limit(resources.cpu_quota_us) if resources.cpu_quota_us else "max"
        found.append(("cpu.max", quota + period))
    if memory and resources.memory_max:
        found.append(("memory.max", _limit(resources.memory_max)))
    if memory and resources.memory_swap_max:
        found.append(("memory.swap.max", _limit(resources.memory_swap_max)))
    if resources.pids_max:
        found.append(("pids.max", _limit(resources.pids_max)))
    found += [(name, value) for name, value in resources.unified if "/" not in name]
    return found


POD = GuestCgroup(f"{paths.CGROUPS}/pod")
OPEN = GuestCgroup(f"{POD.path}/orlop-open")
"""Below it are the containers without a memory limit."""


def prepare() -> None:
    """At boot: controllers on, the groups of the pod made."""
    root = GuestCgroup(paths.CGROUPS)
    root.delegate()
    POD.create()
    POD.delegate()
    OPEN.create()
    OPEN.delegate()
