"""The control group that a caller wants: a container's stand-in is there, and the VM of one that is alone."""

from __future__ import annotations

from orlop.errors import FailedPrecondition
from orlop.host import cgroups
from orlop.sandbox.spec import Resources


def join(path: str, pid: int) -> None:
    """Make the group, if there is to be one, and move a process there. Raises FailedPrecondition."""
    if not path:
        return
    group = cgroups.Cgroup(path)
    try:
        group.create()
        group.add(pid)
    except OSError as error:
        raise FailedPrecondition(f"the control group {path} cannot be made: {error.strerror}") from error


def limit(path: str, wanted: Resources) -> None:
    """Let the VM of a container have no more of the processors than the container may.

    The guest sees to it as well, and alone for memory and processes: the group holds the VM, too.
    """
    limits = cgroups.Limits(
        cpu_period=wanted.cpu_period,
        cpu_quota=wanted.cpu_quota,
        cpu_shares=wanted.cpu_shares,
        cpuset_cpus=wanted.cpuset_cpus,
        cpuset_mems=wanted.cpuset_mems,
    )
    if not path or limits == cgroups.Limits():
        return
    try:
        cgroups.Cgroup(path).set(limits)
    except OSError as error:
        raise FailedPrecondition(
            f"the limits of the control group {path} cannot be set: {error.filename}: {error.strerror}"
        ) from error
