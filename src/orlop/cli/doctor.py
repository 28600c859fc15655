"""``orlop doctor``: can a pod run on this machine, and if not, what is missing.

Each check says what was found. A failed check of a handler that pods do not get by default is a
warning; anything the default handler needs makes the command fail.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec

from orlop.cli import output
from orlop.cli.guest import cache_of
from orlop.cli.node import files
from orlop.cli.units import show_size
from orlop.config import Config, load
from orlop.errors import OrlopError
from orlop.host import process
from orlop.linux import architecture

Level = Literal["ok", "warning", "failed"]
CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
ROOM_WANTED = 2 << 30

RUNTIME_HOLES = "CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881"
"""A container that mounts in step with its start writes to the host's /proc."""

RUNTIME_FIXED = {"runc": ((1, 2, 8), (1, 3, 3), (1, 4, 0))}
"""The first version of each series that has the fixes. crun never had these holes: its maintainers tried
what exploits them (github.com/containers/crun/issues/1906)."""
MEMORY_WANTED = 512 << 20


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report; ``remedy`` is empty when all is well."""

    area: str
    name: str
    level: Level
    found: str
    remedy: str = ""


def _good(area: str, name: str, found: str) -> Check:
    return Check(area=area, name=name, level="ok", found=found)


def _bad(area: str, name: str, found: str, remedy: str, level: Level = "failed") -> Check:
    return Check(area=area, name=name, level=level, found=found, remedy=remedy)


async def _tool(area: str, name: str, package: str, *arguments: str, level: Level = "failed") -> Check:
    """A program in PATH, with the version it tells."""
    path = shutil.which(name)
    if path is None:
        return _bad(area, name, "not found in PATH", f"apt-get install {package}", level)
    try:
        done = await process.run([path, *(arguments or ("--version",))], check=False, timeout=20)
    except OrlopError as error:
        return _bad(area, name, str(error), f"apt-get install --reinstall {package}", level)
    text = (done.stdout + done.stderr).decode(errors="replace")
    version = re.search(r"\d+(?:\.\d+)+\S*", text)
    return _good(area, name, f"{version[0].rstrip(',;)') if version else 'present'} ({path})")


async def machine_checks(config: Config) -> list[Check]:
    """The machine itself."""
    area = "machine"
    checks = []
    system, machine = platform.system(), platform.machine()
    supported = [one.machine for one in architecture.ALL if one.supported]
    if system == "Linux" and machine in supported:
        checks.append(_good(area, "system", f"Linux {platform.release()} on {machine}"))
    else:
        remedy = f"Orlop runs on Linux on {' or '.join(supported)}"
        checks.append(_bad(area, "system", f"{system} on {machine}", remedy))
    checks.append(_good(area, "python", platform.python_version()))
    if os.geteuid() == 0:
        checks.append(_good(area, "rights", "root"))
    else:
        checks.append(_bad(area, "rights", f"user id {os.geteuid()}", "run this, and orlopd, as root"))
    checks.append(_room(area, config))
    available = _available_memory()
    level: Level = "ok" if available >= MEMORY_WANTED else "warning"
    remedy = "" if level == "ok" else "a VM of the default size may not fit"
    found = f"{show_size(available)} available"
    checks.append(Check(area=area, name="memory", level=level, found=found, remedy=remedy))
    version = 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1
    checks.append(_good(area, "cgroups", f"version {version}" + (" (or hybrid)" if version == 1 else "")))
    return checks


def _room(area: str, config: Config) -> Check:
    place = config.root_dir
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{show_size(free)} free for {config.root}"
    if free < ROOM_WANTED:
        return _bad(
            area, "disk", found, f"free some, or choose another `root`: {show_size(ROOM_WANTED)} is wanted"
        )
    return _good(area, "disk", found)


def _available_memory() -> int:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


async def image_checks(config: Config) -> list[Check]:
    """What pulls and converts images."""
    area = "images"
    return [
        await _tool(area, "skopeo", "skopeo"),
        await _tool(area, "mkfs.ext4", "e2fsprogs", "-V"),
    ]


async def network_checks(config: Config) -> list[Check]:
    """What gives a pod its address."""
    area = "network"
    checks = []
    for name in CNI_PLUGINS:
        found = next(
            (Path(one) / name for one in config.network.bin_dirs if (Path(one) / name).exists()), None
        )
        if found is None:
            where = ", ".join(config.network.bin_dirs)
            remedy = "apt-get install containernetworking-plugins"
            checks.append(_bad(area, f"CNI {name}", f"in none of {where}", remedy))
        else:
            checks.append(_good(area, f"CNI {name}", str(found)))
    checks.append(await _tool(area, "iptables", "iptables"))
    checks.append(await _tool(area, "nft", "nftables"))
    if Path("/dev/net/tun").exists():
        checks.append(_good(area, "tun/tap", "/dev/net/tun"))
    else:
        checks.append(_bad(area, "tun/tap", "no /dev/net/tun", "modprobe tun"))
    checks.append(await _cni_configuration(area, config))
    return checks


async def _cni_configuration(area: str, config: Config) -> Check:
    from orlop.net.network import PodNetwork

    name = "CNI network"
    reason = await PodNetwork(config.network, config.root_dir / "network").ready()
    if reason:
        remedy = f"without one of your cluster's: cp {files.path(files.NETWORK)} {config.network.conf_dir}/"
        return _bad(area, name, reason, remedy)
    return _good(area, name, f"configured in {config.network.conf_dir}")


async def vm_checks(config: Config, level: Level) -> list[Check]:
    """The hypervisor, the guest image, and the accelerator, which is believed only after a boot."""
    from orlop.daemon import hypervisor
    from orlop.guestos import build as guestos

    area = "handler vm"
    try:
        backend = hypervisor(config.vm)
    except OrlopError as error:
        return [_bad(area, "configuration", str(error), "see docs/configuration.md", level)]
    checks = [
        *[await _tool(area, program.name, program.package, level=level) for program in backend.programs],
        # Only `orlop guest build` needs it.
        await _tool(area, "mkfs.erofs", "erofs-utils", "-V", level="warning"),
    ]
    try:
        guest = guestos.find(config.vm.guest, cache_of(config))
    except OrlopError as error:
        checks.append(_bad(area, "guest image", str(error), "orlop guest build", level))
        return checks
    checks.append(
        _good(area, "guest image", f"{guest.digest[:12]}, {show_size(guest.size)} ({guest.image.parent})")
    )
    if any(check.level != "ok" for check in checks[: len(backend.programs)]):
        return checks
    try:
        accelerator = await backend.booting(guest, config.root_dir / "hypervisor").probe()
    except OrlopError as error:
        checks.append(_bad(area, "accelerator", str(error), "see docs/operations.md, accelerators", level))
    else:
        checks.append(_good(area, "accelerator", f"{accelerator.kind}: {accelerator.reason}"))
    return checks


async def process_checks(config: Config, level: Level) -> list[Check]:
    """The OCI runtime and its monitor."""
    area = "handler process"
    checks = [await _tool(area, config.process.conmon, "conmon", level=level)]
    wanted = ("runc", "crun") if config.process.runtime == "auto" else (config.process.runtime,)
    found = [name for name in wanted if shutil.which(name)]
    for name in found:
        tool = await _tool(area, name, name, level=level)
        checks.append(judge_runtime(tool) if tool.level == "ok" else tool)
    if not found:
        remedy = f"apt-get install {wanted[0]}"
        checks.append(_bad(area, "OCI runtime", f"no {' or '.join(wanted)} in PATH", remedy, level))
    known = Path("/proc/filesystems").read_text().split()
    for name in ("overlay", "erofs"):
        if name in known:
            checks.append(_good(area, name, "supported by this kernel"))
            continue
        done = None
        if shutil.which("modinfo"):
            done = await process.run(["modinfo", "-n", name], check=False)
        if done is not None and done.returncode == 0:
            checks.append(_good(area, name, "kernel module, loaded on use"))
        else:
            checks.append(_bad(area, name, "not supported by this kernel", f"a kernel with {name}", level))
    return checks


def judge_runtime(check: Check) -> Check:
    """The check of an OCI runtime, a warning if its version is older than the fixes of its known holes."""
    number = re.match(r"\d+(?:\.\d+)+", check.found)
    fixed = RUNTIME_FIXED.get(check.name)
    if number is None or fixed is None:
        return check
    version = tuple(int(part) for part in number[0].split("."))
    if check.found.startswith(f"{number[0]}-rc"):
        version = (*version[:-1], version[-1] - 1)  # a candidate comes before its release
    series = [first for first in fixed if first[:2] == version[:2]]
    if version >= (series[0] if series else fixed[-1]):
        return check
    first = ".".join(map(str, series[0] if series else fixed[0]))
    remedy = (
        f"{check.name} {first} has the fixes of {RUNTIME_HOLES}; a distribution may have put them into an "
        "older version: see its changelog, and keep hostile pods in the handler vm"
    )
    return _bad(check.area, check.name, f"{check.found}, older than known fixes", remedy, "warning")


async def _guarded(area: str, job: Callable[[], Awaitable[list[Check]]], level: Level) -> list[Check]:
    """A part of Orlop that cannot even be imported is a finding, not a crash."""
    try:
        return await job()
    except ImportError as error:
        return [_bad(area, "installation", str(error), "reinstall Orlop (pip install -e .)", level)]


async def examine(config: Config) -> list[Check]:
    """All checks."""
    default = config.default_handler
    vm_level: Level = "warning" if default == "process" else "failed"
    process_level: Level = "warning" if default == "vm" else "failed"
    return [
        *await machine_checks(config),
        *await image_checks(config),
        *await _guarded("network", lambda: network_checks(config), "failed"),
        *await _guarded("handler vm", lambda: vm_checks(config, vm_level), vm_level),
        *await _guarded("handler process", lambda: process_checks(config, process_level), process_level),
    ]


def report(config: Config, checks: Iterable[Check]) -> None:
    """The checks as people read them."""
    from rich.markup import escape

    marks = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "failed": "[red]failed[/] "}
    area = ""
    for check in checks:
        if check.area != area:
            area = check.area
            output.console().print(f"[bold]{area}[/]")
        output.console().print(f"  {marks[check.level]}  {check.name:<18} {escape(check.found)}")
        if check.remedy:
            output.console().print(f"           {'':<18} -> {escape(check.remedy)}")
    running = Path(config.socket).exists()
    daemon = f"listens on {config.socket}" if running else f"not running ({config.socket} does not exist)"
    output.console().print(f"[bold]daemon[/]\n  {escape(daemon)}")


async def doctor_command(path: Path | None, *, as_json: bool) -> int:
    """``orlop doctor``: 0 when a pod could run, else 1."""
    config = load(path)
    checks = await examine(config)
    failed = [check for check in checks if check.level == "failed"]
    if as_json:
        output.print_json({"ready": not failed, "checks": [msgspec.to_builtins(check) for check in checks]})
    else:
        report(config, checks)
        if failed:
            print(
                f"orlop: a pod could not run here: {len(failed)} of {len(checks)} checks failed",
                file=sys.stderr,
            )
        else:
            print(f"A pod can run here (default handler: {config.default_handler}).")
    return 1 if failed else 0
