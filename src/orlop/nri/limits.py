"""Limits that plug-ins ask for."""

from __future__ import annotations

import msgspec

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.nri.api import nri_v1alpha1_pb2 as pb
from orlop.nri.claims import Claims
from orlop.sandbox.spec import Resources

MAX_ENTRIES = 256

_MEMORY = {"limit": ("memory_limit", pb.MemLimit), "swap": ("swap_limit", pb.MemSwapLimit)}
_CPU = {
    "shares": ("cpu_shares", pb.CPUShares),
    "quota": ("cpu_quota", pb.CPUQuota),
    "period": ("cpu_period", pb.CPUPeriod),
}
_RANGES = {
    "memory_limit": (-1, (1 << 63) - 1),
    "swap_limit": (-1, (1 << 63) - 1),
    "cpu_shares": (0, 262144),
    "cpu_quota": (-1, (1 << 63) - 1),
    "cpu_period": (0, 1_000_000),
    "pids_limit": (-1, (1 << 31) - 1),
}


def combined(
    old: Resources, asked: pb.LinuxResources, claims: Claims, *, container: str, plugin: str
) -> Resources:
    """``old`` with what ``plugin`` asks for. Raises FailedPrecondition, InvalidArgument."""
    _refuse_others(asked, plugin)
    found: dict[str, object] = {}

    def take(name: str, field: pb.Field.ValueType, value: int) -> None:
        low, high = _RANGES[name]
        if not low <= value <= high:
            raise InvalidArgument(f"plug-in {plugin} asks for {name} {value}, which is not {low} to {high}")
        claims.claim(container, field, plugin)
        found[name] = value

    for part, message, names in (("memory", asked.memory, _MEMORY), ("cpu", asked.cpu, _CPU)):
        if not asked.HasField(part):  # type: ignore[arg-type]
            continue
        for key, (name, field) in names.items():
            if message.HasField(key):  # type: ignore[arg-type]
                take(name, field, getattr(message, key).value)
    for name, field, text in (
        ("cpuset_cpus", pb.CPUSetCPUs, asked.cpu.cpus),
        ("cpuset_mems", pb.CPUSetMems, asked.cpu.mems),
    ):
        if text:
            if not set(text) <= set("0123456789,- ") or len(text) > 1024:
                raise InvalidArgument(f"plug-in {plugin} asks for {name} {text[:80]!r}, no such list")
            claims.claim(container, field, plugin)
            found[name] = text
    if asked.HasField("pids"):
        take("pids_limit", pb.PidsLimit, asked.pids.limit)
    found |= _entries(old, asked, claims, container, plugin)
    return msgspec.structs.replace(old, **found)


def _entries(
    old: Resources, asked: pb.LinuxResources, claims: Claims, container: str, plugin: str
) -> dict[str, object]:
    if len(asked.hugepage_limits) + len(asked.unified) > MAX_ENTRIES:
        raise InvalidArgument(f"plug-in {plugin} asks for more than {MAX_ENTRIES} limits")
    pages, unified = dict(old.hugepage_limits), dict(old.unified)
    for limit in asked.hugepage_limits:
        claims.claim(container, pb.HugepageLimits, plugin, limit.page_size)
        pages[limit.page_size] = limit.limit
    for key, value in asked.unified.items():
        if "/" in key or "\0" in key or not key:
            raise InvalidArgument(f"plug-in {plugin}: {key[:80]!r} is not the name of a cgroup file")
        claims.claim(container, pb.CgroupsUnified, plugin, key)
        unified[key] = value
    return {"hugepage_limits": tuple(pages.items()), "unified": tuple(sorted(unified.items()))}


def _refuse_others(asked: pb.LinuxResources, plugin: str) -> None:
    memory, cpu = asked.memory, asked.cpu
    others = {
        f"memory.{name}": memory.HasField(name)
        for name in (
            "reservation",
            "kernel",
            "kernel_tcp",
            "swappiness",
            "disable_oom_killer",
            "use_hierarchy",
        )
    }
    others |= {f"cpu.{name}": cpu.HasField(name) for name in ("realtime_runtime", "realtime_period")}
    others |= {
        "blockio_class": asked.HasField("blockio_class"),
        "rdt_class": asked.HasField("rdt_class"),
        "devices": len(asked.devices) > 0,
    }
    if wanted := [name for name, there in others.items() if there]:
        raise FailedPrecondition(
            f"plug-in {plugin} asks for the resources {', '.join(wanted)}, which Orlop does not offer"
        )
