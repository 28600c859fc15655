"""The way into a jail: a short-lived program that shuts the doors behind itself and becomes the VMM.

It is started by :mod:`orlop.hypervisor.jail.spawn` as the first process of a new PID namespace, with
all rights, and gives them up in an order that matters: mounts and devices first, which take rights
over the host; then the user namespace, whose mappings the daemon writes; then user, capabilities and
the way back to them; the system-call filter last, since it forbids all of the above.

Standard library and :mod:`orlop.linux` only: it runs before every VM, so what it imports is paid for each.
"""

from __future__ import annotations

import marshal
import os
import resource
import stat
import sys

from orlop.linux import syscalls

TYPE_CHECKING = False  # the real one costs more than all that is imported above
if TYPE_CHECKING:
    from orlop.hypervisor.jail.orders import Orders

WAITING = b"w"
MAPPED = b"m"
PROC = "/pid"
"""Where a jail sees its own processes (proc(5)), and nothing else of /proc."""

_NAMESPACES = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWCGROUP
)
_PLAIN = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_HOSTNAME = "vm"


def main() -> None:
    """Read the orders from standard input, go in, and become the program they name."""
    orders: Orders = marshal.load(sys.stdin.buffer)
    # Closed by the exec, which is how the daemon knows of it.
    os.set_inheritable(orders["door"], False)
    try:
        enter(orders)
    except OSError as error:
        os.write(orders["door"], str(error).encode())
        sys.exit(1)


def enter(orders: Orders) -> None:
    """See the module. Returns never; raises OSError."""
    syscalls.unshare(_NAMESPACES)
    syscalls.set_host_name(_HOSTNAME)
    _furnish(orders)
    _move_in(orders["tree"])
    entrance = _bound(orders["argv"][0], orders["limits"])
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    os.write(orders["door"], WAITING)
    if os.read(orders["door"], 1) != MAPPED:
        sys.exit("the daemon has gone")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _give_up(set(orders["capabilities"]))
    if not orders["unasked_huge_pages"]:
        syscalls.forbid_unasked_huge_pages()
    # The orders are not the program's to read.
    os.dup2(os.open("/dev/null", os.O_RDWR), 0)
    if orders["program"]:
        syscalls.set_filter(orders["program"])
    os.execve(entrance, orders["argv"], orders["environment"])


def _furnish(orders: Orders) -> None:
    """Put together what the jail shows, below the tree and in this mount namespace alone."""
    tree = orders["tree"]
    # What the host unmounts goes here as well, and nothing comes back.
    syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_SLAVE)
    _bind(tree, tree)
    for source, place in orders["binds"]:
        _bind(source, tree + place)
    _devices(tree + "/dev", orders["devices"], orders["owner"])
    syscalls.mount("proc", tree + PROC, "proc", _PLAIN, "subset=pid")


def _bind(source: str, target: str) -> None:
    copy = syscalls.open_tree(source, recursive=False)
    try:
        closed = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
        syscalls.mount_setattr(copy, add=closed)
        syscalls.move_mount(copy, target)
    finally:
        os.close(copy)


def _devices(place: str, names: list[str], owner: int) -> None:
    """Device nodes of the jail's own, so that their owner can be the VM's user and nobody else's."""
    numbers = {name: os.stat(f"/dev/{name}").st_rdev for name in names}
    flags = syscalls.MS_NOSUID | syscalls.MS_NOEXEC
    syscalls.mount("tmpfs", place, "tmpfs", flags, "mode=0755,size=64k")
    for name, number in numbers.items():
        path = f"{place}/{name}"
        os.mknod(path, stat.S_IFCHR | 0o600, number)
        os.chown(path, owner, owner)
    syscalls.mount("", place, "", flags | syscalls.MS_REMOUNT | syscalls.MS_RDONLY)


def _move_in(tree: str) -> None:
    """Make the tree the root; the host's is out of reach when this returns."""
    os.chdir(tree)
    syscalls.pivot_root(".", ".")
    # The old root lies on top of the new one now.
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")


def _bound(program: str, limits: list[tuple[int, int]]) -> int:
    """Set the limits; returns the program as a descriptor that the exec closes and that lies above them all.

    The filter can then let this one exec pass: nobody in the jail comes to have that descriptor again."""
    values = dict(limits)
    entrance = values[resource.RLIMIT_NOFILE]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (entrance + 1, hard))
    os.dup2(os.open(program, os.O_RDONLY | os.O_CLOEXEC), entrance, inheritable=False)
    for kind, value in limits:
        resource.setrlimit(kind, (value, value))
    return entrance


def _give_up(kept: set[int]) -> None:
    """Keep these capabilities, which count in the user namespace only, and lose the others for good."""
    syscalls.bound_capabilities(kept)
    syscalls.set_capabilities(kept)
    syscalls.set_no_new_privileges()


if __name__ == "__main__":
    main()
