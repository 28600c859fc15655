"""Walk a machine through a container's whole life before a pod needs it.

What runs for the first time is slow: the guest reads code from its disk, allocates, probes its first
hot-plugged disk, and under emulation every instruction has to be translated once per machine. The
template is walked through it so that its clones share the memory; a clone in the pool so that its own
emulator knows the code. The container is made of the guest's own root image and leaves nothing behind.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from orlop.host import threads
from orlop.host.tasks import together
from orlop.hypervisor.base import Disk, Machine
from orlop.sandbox import seccomp
from orlop.sandbox.spec import Seccomp, SeccompMode
from orlop.sandbox.vm.agent import AgentClient
from orlop.storage.disks import scratch_disk
from orlop.wire import values as wire
from orlop.wire.hello import MANY_VOLUMES, READY_LAYERS
from orlop.wire.messages import (
    Clock,
    Create,
    Delete,
    DropAll,
    Exec,
    Fill,
    FillAll,
    Prepare,
    Setup,
    Signal,
    Start,
    Stats,
)

_TIMEOUT = 60.0
_ID = "warm"
_SLEEP = ("/usr/bin/busybox", "sleep", "600")
_NOTHING = ("/usr/bin/busybox", "true")
_EXECS = 2
_REHEARSALS = 3
_READY = "ready"
_SMALL = (
    wire.VolumeEntry(mode=0o777),
    wire.VolumeEntry(path="..kept"),
    wire.VolumeEntry(path="..kept/key", kind="file", data=b"value", modified=1),
    wire.VolumeEntry(path="..data", kind="link", target="..kept"),
    wire.VolumeEntry(path="key", kind="link", target="..data/key"),
)
"""A volume as kubelets make them."""

_CAPABILITIES = ("CHOWN", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID")


class ReadyLayer(NamedTuple):
    """A writable layer that the guest has mounted for its first container; ``path`` is the file behind it."""

    disk: wire.PluggedDisk
    path: Path


async def lay_ready(
    machine: Machine, agent: AgentClient, path: Path, *, scratch_mib: int
) -> ReadyLayer | None:
    """Let the guest have a writable layer ready, made at ``path``; None for a guest that cannot."""
    if READY_LAYERS not in agent.hello.features:
        return None
    await scratch_disk(path, scratch_mib)
    at = await machine.attach_disk(Disk(id=_READY, files=(str(path),), read_only=False))
    disk = wire.PluggedDisk(id=_READY, at=at)
    await agent.call(Prepare(disk=disk), _TIMEOUT)
    return ReadyLayer(disk, path)


async def exercise(
    machine: Machine,
    agent: AgentClient,
    image: Path,
    scratch: Path,
    *,
    scratch_mib: int,
    share: str = "",
    reversible: bool = False,
) -> None:
    """Run a container of the guest's root image ``image``; ``scratch`` becomes its writable layer.

    With ``share``, a directory of the machine's share, it has that mounted as well, and a small volume. What
    ``reversible`` means is said at :meth:`orlop.hypervisor.base.Machine.attach_disk`.
    """
    filters = await threads.call(
        seccomp.compile_bpf, Seccomp(mode=SeccompMode.RUNTIME_DEFAULT), capabilities=_CAPABILITIES
    )
    lower = Disk(id=f"{_ID}-root", files=(str(image),))
    upper = Disk(id=f"{_ID}-rw", files=(str(scratch),), read_only=False)
    try:
        await scratch_disk(scratch, scratch_mib)
        places = await together(
            machine.attach_disk(lower, reversible=reversible),
            machine.attach_disk(upper, reversible=reversible),
        )
        root, rw = (
            wire.PluggedDisk(id=disk.id, at=at) for disk, at in zip((lower, upper), places, strict=True)
        )
        await _run(agent, wire.Disks(root=(root,), scratch=rw), share, filters.program)
        await together(machine.detach_disk(lower.id), machine.detach_disk(upper.id))
    finally:
        await threads.call(scratch.unlink, missing_ok=True)


async def rehearse(machine: Machine, agent: AgentClient) -> None:
    """Set the guest up for pods that do not exist; the pod's own Setup replaces all of it."""
    for number in range(_REHEARSALS):
        interface = wire.Interface(
            at=machine.network_at,
            mac=f"02:00:00:00:00:{number + 1:02x}",
            mtu=1500,
            addresses=(f"192.0.2.{number + 2}/24",),  # RFC 5737, RFC 3849: never anybody's
            routes=(wire.Route(destination="0.0.0.0/0", gateway="192.0.2.1"),),
        )
        await agent.call(
            Setup(
                hostname=f"{_ID}-{number}",
                share=machine.share_at,
                clock=time.time_ns(),
                entropy=os.urandom(64),
                machine_id=secrets.token_hex(16),
                interfaces=(interface,),
                resolv_conf="nameserver 192.0.2.1\n",
                hosts="127.0.0.1 localhost\n",
            ),
            _TIMEOUT,
        )
        await agent.call(Clock(shift=1, step=True), _TIMEOUT)


async def _run(agent: AgentClient, disks: wire.Disks, share: str, program: bytes) -> None:
    streams = [agent.incoming(agent.new_stream()) for _ in range(2)]
    mounts: tuple[wire.GuestMount, ...] = ()
    if share:
        mounts = (wire.GuestMount(target="/mnt", kind="share", source=share),)
    small = bool(share) and MANY_VOLUMES in agent.hello.features
    if small:
        await agent.call(FillAll(fills=(Fill(id=_ID, entries=_SMALL),)), _TIMEOUT)
        mounts = (*mounts, wire.GuestMount(target="/srv", kind="volume", volume=_ID, read_only=True))
    container = wire.Container(
        id=_ID,
        disks=disks,
        args=_SLEEP,
        mounts=mounts,
        streams=wire.Streams(stdout=streams[0].stream, stderr=streams[1].stream),
        security=wire.GuestSecurity(
            bounding=_CAPABILITIES,
            effective=_CAPABILITIES,
            seccomp=program,
            masked_paths=("/proc/kcore", "/sys/firmware"),
            read_only_paths=("/proc/sys",),
        ),
    )
    await agent.call(Create(container=container), _TIMEOUT)
    await agent.call(Start(id=_ID), _TIMEOUT)
    for number in range(_EXECS):
        await _exec(agent, f"{_ID}{number}")
    await agent.call(Stats(full=True), _TIMEOUT)
    await agent.call(Signal(id=_ID, signal=9, all=True), _TIMEOUT)
    for stream in streams:
        while await stream.read():
            pass
        stream.end_consumed()
    await agent.call(Delete(id=_ID), _TIMEOUT)
    if small:
        await agent.call(DropAll(ids=(_ID,)), _TIMEOUT)


async def _exec(agent: AgentClient, exec_id: str) -> None:
    streams = [agent.incoming(agent.new_stream()) for _ in range(2)]
    await agent.call(
        Exec(
            id=exec_id,
            container_id=_ID,
            args=_NOTHING,
            streams=wire.Streams(stdout=streams[0].stream, stderr=streams[1].stream),
        ),
        _TIMEOUT,
    )
    for stream in streams:
        while await stream.read():
            pass
        stream.end_consumed()
