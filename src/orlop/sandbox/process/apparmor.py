"""AppArmor: which profile a container gets, and the default one, loaded when it is first needed."""

from __future__ import annotations

from pathlib import Path

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, OrlopError
from orlop.host import process
from orlop.sandbox.spec import Security

DEFAULT = "orlop-default"
_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
_LOADED = Path("/sys/kernel/security/apparmor/profiles")

PROFILE = f"""
#include <tunables/global>

profile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{
  #include <abstractions/base>

  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer={DEFAULT},
  ptrace (trace,read,tracedby,readby) peer={DEFAULT},

  deny mount,
  deny @{{PROC}}/* w,
  deny @{{PROC}}/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}}/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"""


def enabled() -> bool:
    """Whether the host's kernel has AppArmor switched on."""
    try:
        return _ENABLED.read_text(encoding="ascii").startswith("Y")
    except OSError:
        return False


def loaded(name: str) -> bool:
    """Whether the kernel knows a profile of that name."""
    try:
        lines = _LOADED.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.rpartition(" (")[0] == name for line in lines)


async def profile_of(security: Security) -> str:
    """The profile for ``process.apparmorProfile``, "" for none.

    Raises FailedPrecondition where a profile is asked for by name on a host without AppArmor,
    NotFound for one that is not loaded.
    """
    wanted = security.apparmor
    if not enabled():
        if wanted.startswith("localhost/"):
            raise FailedPrecondition(
                f"AppArmor profile {wanted} was asked for, but AppArmor is not enabled on this host"
            )
        return ""
    if wanted == "unconfined" or (security.privileged and not wanted.startswith("localhost/")):
        return "unconfined" if wanted else ""
    if wanted.startswith("localhost/"):
        name = wanted.removeprefix("localhost/")
        if not loaded(name):
            raise NotFound(f"AppArmor profile {name} is not loaded on this host")
        return name
    if wanted not in ("", "runtime/default"):
        raise InvalidArgument(f"AppArmor profile {wanted[:80]!r} is not understood")
    if not loaded(DEFAULT):
        await _load_default()
    return DEFAULT


async def _load_default() -> None:
    try:
        await process.run(["apparmor_parser", "-Kr"], input=PROFILE.encode())
    except OrlopError as error:
        raise FailedPrecondition(f"the AppArmor profile {DEFAULT} cannot be loaded: {error}") from error
