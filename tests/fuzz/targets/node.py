"""What users of the node, their files, QEMU and the files of an image may say."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any, cast

from orlop import config
from orlop.cli import units
from orlop.client import logs, mounts, options, rights, texts
from orlop.errors import InvalidArgument, OrlopError
from orlop.guest.launch import credentials
from orlop.guest.machine import cgroup, links
from orlop.host.seccomp import compile_profile
from orlop.hypervisor.base import MachineShape
from orlop.hypervisor.qemu import machine as machines
from orlop.hypervisor.qemu import memuse, record
from orlop.linux import usage, users
from orlop.sandbox import seccomp
from orlop.wire.messages import Refused
from orlop.wire.values import GuestLimits, GuestRlimit
from tests.fuzz.kit import run, target

PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}],
            "includes": {"caps": ["CAP_NET_ADMIN"], "minKernel": "4.8"},
        },
    ],
}


@target(OrlopError, seeds=[json.dumps(PROFILE).encode()])
def seccomp_profile(data: bytes) -> None:
    """A profile that is accepted becomes a program that the kernel's limits allow."""
    profile = seccomp.parse(data, "profile.json", ("NET_ADMIN",))
    assert len(compile_profile(profile, "profile.json").program) % 8 == 0


@target(
    InvalidArgument,
    seeds=[
        b"8080:80",
        b"127.0.0.1:8080:80/udp",
        b"[::1]:1:2",
        b"/tmp:/data:ro",
        b"~nobody:/x",
        b"1.5g",
        b"A=b",
    ],
)
def command_line(data: bytes) -> None:
    """What an argument of ``orlop run`` may be: any bytes but NUL."""
    text = os.fsdecode(data.replace(b"\0", b""))
    for parse in (
        texts.parse_size,
        options.parse_port,
        mounts.parse_volume,
        mounts.parse_tmpfs,
        units.parse_environment,
        rights.ulimit,
        rights.device,
        rights.signal_number,
    ):
        try:
            parse(text)
        except InvalidArgument as error:
            str(error).encode("utf-8", "surrogateescape")


@target(
    OrlopError, seeds=[b"[vm]\nbase_memory_mib = 64\n[vm.pool]\nsize = 3\n", b"[network]\nbin_dirs = [1]"]
)
def configuration_file(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(data)
        file.flush()
        config.load(Path(file.name))


@target(seeds=[b"2026-01-01T00:00:00.0Z stdout F hello", b"2026 stderr P:x a"])
def log_line(data: bytes) -> None:
    logs.parse(data)


@target(users.UnknownName, seeds=[b"web:x:1000:1001::/srv:/bin/sh\nroot:x:0:0\n\xffextra:x:5:web,a\n"])
def user_database(data: bytes) -> None:
    """/etc/passwd and /etc/group of an image."""
    passwd, _, group = data.partition(b"\xff")
    users.find(
        users.Wanted(user="web", group="extra"),
        passwd.decode(errors="replace"),
        group.decode(errors="replace"),
    )


@target(
    Refused,
    ValueError,
    seeds=[
        b"10.1.2.3/24",
        b"aa:bb:cc:dd:ee:ff",
        b"net.ipv4.ip_forward",
        b"NOFILE",
        b"CAP_CHOWN",
        b"memory.high",
    ],
)
def guest_words(data: bytes) -> None:
    """Small texts that the guest's agent translates: it says which it refuses."""
    text = data.decode("utf-8", "replace")
    for translate in (
        links.network_bytes,
        links.mac_bytes,
        lambda text: credentials.capability_mask((text,)),
        lambda text: list(credentials.rlimits((GuestRlimit(name=text, soft=1, hard=2),))),
    ):
        try:
            translate(text)
        except (Refused, ValueError):
            continue
    for name, _ in cgroup.settings(GuestLimits(unified=((text, "1"),))):
        assert "/" not in name and name not in (".", "..")


@target(
    seeds=[
        b"usage_usec 5\nuser_usec 3\n",
        b"8:0 rbytes=1 wbytes=2 rios=3 wios=4\n",
        b"some avg10=1.5 total=9\n",
    ]
)
def kernel_file(data: bytes) -> None:
    """A control group's file, and a process' memory, as large as the kernel's are."""
    text = data[:4096].decode("utf-8", "replace")
    usage.unified(lambda name: text)
    memuse.parse(text)


class _Monitor:
    """A QEMU whose every answer is the next value of a list."""

    def __init__(self, answers: list[object]) -> None:
        self._answers = answers

    async def execute(self, command: str, arguments: object = None, *, timeout: float = 0) -> object:
        return self._answers.pop(0) if self._answers else {}

    async def close(self) -> None:
        pass


NOBODY = 1 << 30
"""A process that cannot be: it is killed when it goes down."""

CPUS = [{"type": "host-x86_64-cpu", "props": {"socket-id": 1}}, {"type": "c", "props": {}, "qom-path": "/m"}]


@target(
    OrlopError,
    seeds=[
        json.dumps([CPUS, {}, {}]).encode(),
        json.dumps([1 << 21, {}, 1 << 27, 1 << 27]).encode(),
        json.dumps([{"status": "guest-panicked"}, "aGVsbG8="]).encode(),
        json.dumps(
            ["STOP", {"status": "shutdown"}, "SHUTDOWN", {"guest": True, "reason": "guest-reset"}]
        ).encode(),
    ],
)
def qemu(data: bytes) -> None:
    """A QEMU that was taken over answers as it likes: what it is asked fails with an error of ours."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(said, list) and len(said) < 50:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
            run(_ask(Path(place), said))


async def _ask(place: Path, said: list[object]) -> None:
    known = record.MachineRecord(
        pid=0,
        start_time=0,
        shape=MachineShape(memory_mib=128, vcpus=1),
        base_memory_mib=128,
        max_memory_mib=512,
    )
    machine = machines.QemuMachine(place, known)
    machine._watch.cancel()
    try:
        for ask in (
            lambda: machine._add_vcpus(2),
            lambda: machine._resize_memory(256),
            machine.console_tail,
            machine._look_why_stopped,
        ):
            machine._monitor = cast("Any", _Monitor(list(said)))
            try:
                async with asyncio.timeout(5):
                    await ask()
            except (OrlopError, TimeoutError):
                continue
        for name in said[::2]:
            for details in said[1::2]:
                if isinstance(name, str) and isinstance(details, dict):
                    machine._on_event(name, details)
    finally:
        machine._monitor = None
        machine._going_down = None
        await machine.close()
