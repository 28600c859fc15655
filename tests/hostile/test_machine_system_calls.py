"""Code that has taken a QEMU over makes system calls that QEMU has no need of; see ``injected``."""

from __future__ import annotations

import asyncio
import errno
import platform
import re
import resource
import signal
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from orlop.guestos.build import GuestArtifacts, build
from orlop.host import process
from orlop.hypervisor.base import MachineShape
from orlop.hypervisor.jail.spawn import ENTRANCE, LIMITS
from orlop.hypervisor.qemu import QemuBackend, systemcalls
from orlop.hypervisor.qemu.machine import QemuMachine
from tests.e2e.vm_environment import CACHE
from tests.hostile.injected import Call, inject
from tests.patience import PATIENCE, vm_config

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="injects code of x86-64")

NOTHING = b"/nothing\0".hex()
ZEROES = bytes(256).hex()
NEW_USER, NEW_NET = 0x10000000, 0x40000000

REFUSED: dict[str, Call] = {
    "io_uring_setup": [425, 8, ZEROES],
    "socket AF_INET": [41, socket.AF_INET, socket.SOCK_DGRAM, 0],
    "socket AF_UNIX": [41, socket.AF_UNIX, socket.SOCK_STREAM, 0],
    "socket AF_NETLINK": [41, socket.AF_NETLINK, socket.SOCK_RAW, 0],
    "socketpair": [53, socket.AF_UNIX, socket.SOCK_STREAM, 0, ZEROES],
    "memfd_create": [319, NOTHING, 0],
    "inotify_init1": [294, 0],
    "personality": [135, 0xFFFFFFFF],
    "prctl PR_SET_DUMPABLE": [157, 4, 1],
    "prctl PR_SET_KEEPCAPS, upper half set": [157, 8 | 1 << 32, 1],
    "sched_setscheduler": [144, 0, 0, ZEROES],
    "setpriority": [141, 0, 0, 5],
    "prlimit64": [302, 0, 7, struct.pack("=2Q", 100, 100).hex(), 0],
    "shmget": [29, 0, 4096, 0o1600],
    "mlock": [149, ZEROES, 1],
    "setsockopt": [54, 2, 1, 2, ZEROES, 4],
    "capget": [125, struct.pack("=Ii", 0x20080522, 0).hex(), ZEROES],
    "clone of a process in new namespaces": [56, NEW_USER | NEW_NET | signal.SIGCHLD, 0, 0, 0, 0],
}
"""Calls that work in the jail, and that its filter refuses with EPERM."""

DEADLY: dict[str, Call] = {
    "bpf": [321, 0, ZEROES, 0],
    "userfaultfd": [323, 1],
    "keyctl": [250, 0, -3, 1],
    "add_key": [248, b"user\0".hex(), NOTHING, ZEROES, 4, -3],
    "ptrace": [101, 16, 1, 0, 0],
    "process_vm_readv": [310, 1, ZEROES, 0, ZEROES, 0, 0],
    "perf_event_open": [298, ZEROES, 0, -1, -1, 0],
    "mount": [165, NOTHING, NOTHING, b"tmpfs\0".hex(), 0, 0],
    "unshare": [272, NEW_USER],
    "setns": [308, -1, 0],
    "open_tree": [428, -100, b"/\0".hex(), 0],
    "execve": [59, NOTHING, 0, 0],
}
"""Calls that no QEMU makes: whoever makes one is not QEMU, and is ended."""


@pytest.fixture(scope="module")
def guest() -> GuestArtifacts:
    return asyncio.run(build(CACHE / "guest"))


@asynccontextmanager
async def running(guest: GuestArtifacts, **settings: str) -> AsyncIterator[QemuMachine]:
    """A machine whose guest begins to boot."""
    with tempfile.TemporaryDirectory(prefix="orlcalls-") as place:
        config = msgspec.structs.replace(vm_config(accelerator="tcg", **settings), max_memory_mib=512)
        hypervisor = QemuBackend(config).booting(guest, Path(place, "root"))
        shape = MachineShape(memory_mib=256)
        machine = await hypervisor.start(Path(place, "vm"), shape, tap_fd=None, share=Path(place, "share"))
        try:
            yield machine
        finally:
            await machine.stop()


async def test_without_the_filter_they_work(guest: GuestArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is: they reach the kernel's own checks, most of them with success."""
    monkeypatch.setattr(systemcalls, "program", lambda guard, *, kvm: b"")
    async with running(guest) as machine:
        calls = {**REFUSED, **DEADLY}
        found = dict(zip(calls, await inject(machine.pid, *calls.values()), strict=True))
    assert "killed" not in found.values()
    assert {name for name in REFUSED if found[name] == -errno.EPERM} == set()
    assert {name for name, said in found.items() if int(said) >= 0} >= {
        *(name for name in REFUSED if name.startswith("socket")),
        "memfd_create",
        "personality",
        "clone of a process in new namespaces",
        "keyctl",
        "process_vm_readv",
    }


async def test_with_it_they_are_refused(guest: GuestArtifacts) -> None:
    async with running(guest) as machine:
        found = dict(zip(REFUSED, await inject(machine.pid, *REFUSED.values()), strict=True))
        assert found == dict.fromkeys(REFUSED, -errno.EPERM)
        assert process.pid_alive(machine.pid, machine.start_time)


@pytest.mark.parametrize("name", DEADLY)
async def test_what_no_qemu_does_ends_it(guest: GuestArtifacts, name: str) -> None:
    async with running(guest) as machine:
        assert await inject(machine.pid, DEADLY[name]) == ["killed"]
        assert "a system call that no QEMU makes" in await machine.wait()


async def test_the_one_exec_that_passes_has_passed(guest: GuestArtifacts) -> None:
    """The filter lets exec of one descriptor through: nobody inside can come to have it again."""
    async with running(guest) as machine:
        dup3, f_dupfd, execveat = 292, [72, 2, 0, ENTRANCE], 322
        calls: list[Call] = [
            [execveat, ENTRANCE, b"\0".hex(), 0, 0, 0x1000],
            [dup3, 2, ENTRANCE, 0],
            list(f_dupfd),
            [execveat, 2, b"\0".hex(), 0, 0, 0x1000],
            [execveat, -100, b"/usr/bin/qemu-system-x86_64\0".hex(), 0, 0, 0],
        ]
        found = await inject(machine.pid, *calls)
    assert found == [-errno.EBADF, -errno.EBADF, -errno.EINVAL, -errno.EPERM, -errno.EPERM]


async def test_its_limits_are_set_and_stay(guest: GuestArtifacts) -> None:
    prlimit64, fcntl, most_files = 302, 72, LIMITS[resource.RLIMIT_NOFILE]
    async with running(guest) as machine:
        for kind, most in LIMITS.items():
            assert resource.prlimit(machine.pid, kind) == (most, most)
        raised = [[prlimit64, 0, kind, struct.pack("=2Q", 1 << 20, 1 << 20).hex(), 0] for kind in LIMITS]
        lowered = [[prlimit64, 0, resource.RLIMIT_NOFILE, struct.pack("=2Q", 9, 9).hex(), 0]]
        assert set(await inject(machine.pid, *raised, *lowered)) == {-errno.EPERM}
        opened = await inject(machine.pid, *([fcntl, 2, 0, most_files - 2] for _ in range(3)))
        assert opened == [most_files - 2, most_files - 1, -errno.EMFILE]


async def test_its_error_log_does_not_grow(guest: GuestArtifacts) -> None:
    """Else it fills the host's disk with what it writes to standard error."""
    write, ftruncate, fallocate, flood = 1, 77, 285, "61" * 4096
    async with running(guest) as machine:
        *written, longer, more = await inject(
            machine.pid,
            *([write, 2, flood, 4096] for _ in range(20)),
            [ftruncate, 2, 1 << 30],
            [fallocate, 2, 0, 0, 1 << 30],
        )
        assert written[-1] == -errno.EPERM
        # The bound on a file's length may come before the seal.
        assert {longer, more} <= {-errno.EPERM, -errno.EFBIG}
        assert Path(f"/proc/{machine.pid}/fd/2").stat().st_size == 64 << 10
        process.send_signal(machine.pid, machine.start_time, signal.SIGKILL)
        assert "aaaa" in await machine.wait()
        assert sum(file.stat().st_size for file in machine.directory.iterdir()) < 1 << 20


async def test_the_log_tells_of_what_is_not_on_the_list(guest: GuestArtifacts) -> None:
    async with running(guest, seccomp="log") as machine, asyncio.timeout(60 * PATIENCE):
        began = time.time()
        assert int((await inject(machine.pid, REFUSED["memfd_create"]))[0]) >= 0
        while not await _logged(319, began):
            # The kernel writes few such lines at a time.
            await inject(machine.pid, REFUSED["memfd_create"])


async def _logged(number: int, since: float) -> bool:
    done = await process.run(["dmesg"], output_limit=64 << 20)
    lines = re.findall(
        r"type=1326 audit\((\d+)\..*\bcomm=\"qemu-system-x86\".* syscall=(\d+) ", done.stdout.decode()
    )
    return any(int(when) >= int(since) and int(call) == number for when, call in lines)
