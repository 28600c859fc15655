"""Walking the paths a pod will take, so that clones of the template find code and pages ready.

A whole container is run, from Create to Delete, with the guest's own root as its image and the agent's
own interpreter as its program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from orlop.guest import paths
from orlop.guest.agent import Agent
from orlop.guest.answer import Answer
from orlop.guest.containers import devicefilter
from orlop.guest.containers.container import LiveContainer
from orlop.guest.machine import boot, cgroup, clock, memory, stats
from orlop.wire import messages
from orlop.wire.values import (
    Container,
    Disks,
    GuestLimits,
    GuestMount,
    GuestSecurity,
    PluggedDisk,
    VolumeEntry,
)

_ID = "warm"
_SLEEP = "import signal; signal.pause()"
# What most containers ask for: these steps are kept and used again.
_CAPABILITIES = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
    "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
)  # fmt: skip
_MASKED = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap", "/sys/devices/system/cpu/cpu0/thermal_throttle",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class _Rehearsed(LiveContainer):
    """A container whose image is the guest's root."""

    def lower(self, disks: tuple[PluggedDisk, ...]) -> list[str]:
        """No disk is plugged in a template."""
        return ["/"]


def quiesce(agent: Agent, answer: Answer) -> None:
    """Get the agent ready to be saved as a template, and answer."""
    agent.identity.prepare()
    boot.tune_disks()
    _keep_filters_on()

    def done() -> None:
        memory.freeze()
        answer.ok(messages.Done())

    _walk(agent, done)


def _keep_filters_on() -> None:
    """The kernel writes itself anew when the first group gets a filter and when the last one goes.

    In an emulator that is slow, and each clone would do it: one group, of nobody, keeps one.
    """
    group = cgroup.GuestCgroup(f"{paths.CGROUPS}/orlop-filter")
    group.create()
    directory = group.open()
    try:
        devicefilter.restrict(directory, ())
    finally:
        os.close(directory)


def _walk(agent: Agent, then: Callable[[], None]) -> None:
    """Run a container and call ``then``, however it went."""
    _talk()
    agent.quiet = True
    request = _create()
    entry = _Rehearsed(
        request.container,
        agent.streaming,
        agent.disks,
        agent.id_maps,
        agent.volumes,
        sockets=agent.sockets,
    )
    steps = iter(
        (
            lambda step: agent.fill_all(messages.FillAll(fills=(_fill(),)), step),
            lambda step: agent.fill(_fill("..after"), step),
            lambda step: agent.bring_up(entry, step),
            lambda step: agent.start(messages.Start(id=_ID), step),
            lambda step: agent.exec(_exec(), step),
            lambda step: agent.stats(messages.Stats(full=True), step),
            lambda step: agent.fetch(messages.Fetch(id=_ID, path="key"), step),
            lambda step: agent.delete(messages.Delete(id=_ID), step),
            lambda step: agent.drop_all(messages.DropAll(ids=(_ID,)), step),
        )
    )

    problems: list[str] = []

    def following(payload: bytes) -> None:
        if b'"error"' in payload[:10]:
            problems.append(payload.decode())
        step = next(steps, None)
        if step is None:
            agent.quiet = False
            if problems:
                text = f"the warm-up failed: {'; '.join(problems)}"
                agent.emit(messages.Log(level="warning", text=text[:8192]))
            then()
            return
        answer = Answer(following)
        try:
            step(answer)
        except messages.Refused as refused:
            answer.refuse(refused)

    following(b"")


def _create() -> messages.Create:
    security = GuestSecurity(
        bounding=_CAPABILITIES,
        effective=_CAPABILITIES,
        masked_paths=_MASKED,
        read_only_paths=_READ_ONLY,
    )
    container = Container(
        id=_ID,
        disks=Disks(root=(PluggedDisk(id=_ID),)),
        args=(sys.executable or "/usr/bin/python3", "-S", "-E", "-c", _SLEEP),
        env=(("PATH", b"/usr/bin:/bin"),),
        hostname=_ID,
        mounts=(
            GuestMount(target="/warm", kind="volume", volume=_ID, read_only=True),
            GuestMount(target="/tmp", kind="tmpfs"),
        ),
        resources=GuestLimits(cpu_weight=100, memory_max=-1, pids_max=-1),
        security=security,
    )
    return messages.Create(container=container)


def _fill(swapped: str = "..before") -> messages.Fill:
    """A volume as kubelets make them."""
    entries = (
        VolumeEntry(mode=0o777),
        VolumeEntry(path=swapped),
        VolumeEntry(path=f"{swapped}/key", kind="file", data=b"value", mode=0o644),
        VolumeEntry(path="..data", kind="link", target=swapped),
        VolumeEntry(path="key", kind="link", target="..data/key"),
    )
    return messages.Fill(id=_ID, entries=entries)


def _exec() -> messages.Exec:
    return messages.Exec(id=_ID, container_id=_ID, args=("python3", "-S", "-E", "-c", ""))


def _talk() -> None:
    """Encode and decode what will come."""
    said: tuple[messages.Request[Any], ...] = (
        _create(), _exec(), _fill(), messages.FillAll(fills=(_fill(),)), messages.DropAll(ids=(_ID,)),
        messages.Setup(hostname=_ID), messages.Start(id=_ID),
        messages.Delete(id=_ID), messages.Signal(id=_ID, signal=15), messages.Resume(), messages.Dump(),
        messages.Stats(), messages.Clock(),
    )  # fmt: skip
    for request in said:
        messages.unpack_request(messages.pack_request(request))
    stats.usage(cgroup.POD)
    memory.figures()
    clock.correct(0, step=False)
