"""``orlop node install`` and ``orlop node rollback``: make a machine a node with Orlop, and undo it.

Beside the node's runtime, Orlop runs and serves its socket, and nothing else changes. As the node's runtime,
the kubelet uses it. Both can be repeated, and each goes on from where an earlier one ended.
"""

from __future__ import annotations

import sys
from pathlib import Path

from orlop.cli.node import files, kubelet
from orlop.cli.node.host import NodeHost
from orlop.cli.problems import CliError
from orlop.config import DEFAULT_PATH

DAEMON, SWITCH = "orlopd.service", "orlop-switch.service"
_UNITS = "/etc/systemd/system"
_PACKAGED = "/usr/lib/systemd/system"
_COMMAND = "/usr/bin/orlopd"
_CONFIGURATION = """# Written by `orlop node install`.
# A VM for each pod, but for those that ask for the host, as the agents of a cluster do.
default_handler = "auto"
cgroup_driver = "{driver}"

[metrics]
port = 9464
"""


async def install_command(host: NodeHost, *, package: Path | None, as_runtime: bool) -> None:
    """``orlop node install``."""
    if package is not None:
        await host.install(package)
    _programs(host)
    if host.read(str(DEFAULT_PATH)) in ("", _packaged_configuration()):
        host.write(str(DEFAULT_PATH), _CONFIGURATION.format(driver=kubelet.cgroup_driver(host)))
    if as_runtime:
        kubelet.use(host)
    await host.run("systemctl", "enable", DAEMON)
    running = await host.systemctl("daemon-reload") and await host.systemctl("restart", DAEMON)
    if as_runtime:
        # Not waited for: the pod that says this may be one of those that end.
        await host.systemctl("start", "--no-block", SWITCH)
    _tell(
        "installed", running, f"the kubelet is switched by {SWITCH}" if as_runtime else "beside the runtime"
    )


async def rollback_command(host: NodeHost) -> None:
    """``orlop node rollback``: the kubelet uses what it used before, Orlop's pods end, and so does Orlop."""
    was_runtime = kubelet.used(host)
    kubelet.forget(host)
    if was_runtime and host.booted:
        await host.systemctl("daemon-reload")
        await host.systemctl("start", SWITCH)
    await host.run("systemctl", "disable", DAEMON)
    await host.systemctl("stop", DAEMON)
    for name in files.UNITS:
        if host.read(f"{_UNITS}/{name}"):
            host.remove(f"{_UNITS}/{name}")
    running = await host.systemctl("daemon-reload")
    _tell("rolled back", running, "the kubelet uses what it used before" if was_runtime else "")


def _programs(host: NodeHost) -> None:
    """See that the daemon is there with its units; those of a package are left as they are."""
    command = _COMMAND
    if not host.path(_COMMAND).exists():
        own = Path(sys.prefix) / "bin" / "orlopd"
        if host.root != Path("/") or not own.exists():
            raise CliError(f"{host.root} has no {_COMMAND}: name Orlop's package with --package")
        command = str(own)
    for name in files.UNITS:
        if not host.path(f"{_PACKAGED}/{name}").exists():
            text = files.path(name).read_text().replace(_COMMAND, command)
            host.write(f"{_UNITS}/{name}", text.replace("/usr/bin/orlop ", f"{command.removesuffix('d')} "))


def _packaged_configuration() -> str:
    return files.path(files.CONFIGURATION).read_text()


def _tell(what: str, running: bool, more: str) -> None:
    later = "" if running else "systemd does not run there, so it takes effect at the next boot"
    print("; ".join(part for part in (f"Orlop is {what}", more, later) if part))
