"""User namespaces: id maps for containers, and mounts seen through them. user_namespaces(7)."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from orlop.guest import paths
from orlop.guest.launch import spawn
from orlop.guest.launch.script import Script
from orlop.linux import syscalls
from orlop.wire.messages import Refused
from orlop.wire.values import GuestNamespaces, IdRange

_PATIENCE = 5.0


def write_maps(pid: int, namespaces: GuestNamespaces) -> None:
    """Fill in the user namespace of ``pid``; ``invalid`` when the kernel does not take it."""
    for name, mappings in (("uid_map", namespaces.uid_mappings), ("gid_map", namespaces.gid_mappings)):
        text = "".join(f"{m.inner} {m.outer} {m.length}\n" for m in mappings)
        try:
            paths.write_text(f"/proc/{pid}/{name}", text)
        except OSError as error:
            raise Refused("invalid", f"the id mappings are not valid ({name}): {error.strerror}") from error


def outer_id(inner: int, mappings: Sequence[IdRange]) -> int:
    """The guest's own id of a container's id; the same without mappings."""
    for mapping in mappings:
        if mapping.inner <= inner < mapping.inner + mapping.length:
            return mapping.outer + inner - mapping.inner
    return inner


class IdMaps:
    """User namespaces without processes, one for each set of mappings, to look at mounts through."""

    def __init__(self) -> None:
        self._known: dict[GuestNamespaces, int] = {}

    def mapped(self, directory: str, target: str, namespaces: GuestNamespaces) -> None:
        """Mount ``directory`` at ``target`` such that the container's root owns what root owns there."""
        fd = syscalls.open_tree(directory, recursive=False)
        try:
            syscalls.mount_setattr(fd, add=syscalls.MOUNT_ATTR_IDMAP, userns=self._namespace(namespaces))
            os.makedirs(target, exist_ok=True)
            syscalls.move_mount(fd, target)
        except OSError as error:
            raise Refused(
                "failed_precondition", f"cannot map the owners of {directory}: {error.strerror}"
            ) from error
        finally:
            os.close(fd)

    def _namespace(self, namespaces: GuestNamespaces) -> int:
        key = GuestNamespaces(uid_mappings=namespaces.uid_mappings, gid_mappings=namespaces.gid_mappings)
        if key not in self._known:
            self._known[key] = _create(key)
        return self._known[key]


def _create(namespaces: GuestNamespaces) -> int:
    """A descriptor of a new user namespace; the process that was needed to make it is gone afterwards."""
    ours, theirs = spawn.control_pair()
    steps = Script()
    steps.gate(theirs.fileno())
    steps.add("exit_group", 0)
    try:
        child = spawn.start(steps, flags=syscalls.CLONE_NEWUSER)
    finally:
        theirs.close()
    child.control = ours
    try:
        write_maps(child.pid, namespaces)
        fd = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        child.go()
        # The steps have to stay in memory until their walker has ended.
        select.select([child.pidfd], [], [], _PATIENCE)
        child.close()
    return fd
