"""Making a clone of the template one pod's own: name, clock, randomness, network, limits."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import time
from contextlib import suppress

from orlop.guest import paths
from orlop.guest.devices import net
from orlop.guest.machine import links
from orlop.guest.paths import create_text, read_text, write_text
from orlop.linux import syscalls
from orlop.linux.netlink import Netlink
from orlop.wire.messages import Refused, Setup, SetupReply
from orlop.wire.values import Interface

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_SHM_SIZE = 64 << 20
_MACHINE_ID = f"{paths.ETC}/machine-id"
_MACHINE_PLACE = "/etc/machine-id"
_SYSCTL_NAME = re.compile(r"[a-z0-9_]+([./][A-Za-z0-9_:-]+)+")

# A pod's network is its own, so its ports below 1024 and its pings need no privilege.
_DEFAULT_SYSCTLS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}


class PodIdentity:
    """What makes this VM one pod's. May be set again as a whole, as long as nothing depends on it."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._sysctls: dict[str, str] = {}
        self._prepared = False

    def prepare(self) -> None:
        """Do what is the same for every pod: before a template is saved, so that no clone has to."""
        if self._prepared:
            return
        self._prepared = True
        with Netlink() as kernel:
            links.set_link(kernel, socket.if_nametoindex("lo"), up=True)
        # The kernel draws its boot_id when somebody asks for the first time: nobody may, before a clone has
        # entropy of its own.
        if os.path.exists(_MACHINE_PLACE):
            create_text(_MACHINE_ID, read_text(_MACHINE_PLACE), 0o444)
            syscalls.mount(_MACHINE_ID, _MACHINE_PLACE, "", syscalls.MS_BIND)
        self._set_sysctls(_DEFAULT_SYSCTLS)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("shm", paths.SHM, "tmpfs", flags, f"mode=1777,size={_SHM_SIZE}")

    def apply(self, setup: Setup) -> SetupReply:
        """Do all of it; Refused for what cannot be."""
        self.prepare()
        # Clock and randomness before anything is stamped or drawn: clones begin with one state of both.
        if setup.clock:
            time.clock_settime_ns(time.CLOCK_REALTIME, setup.clock)
        if setup.entropy:
            _seed(setup.entropy)
        socket.sethostname(setup.hostname)
        self._files(setup)
        # Interfaces first: a sysctl may be one of an interface, by the name it is given here.
        self._network(setup.interfaces)
        self._set_sysctls({**_DEFAULT_SYSCTLS, **dict(setup.sysctls)})
        return SetupReply(kernel=os.uname().release)

    def _files(self, setup: Setup) -> None:
        if setup.machine_id:
            create_text(_MACHINE_ID, setup.machine_id + "\n", 0o444)
        own = f"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{setup.hostname}\n"
        for name, text in (
            ("hostname", setup.hostname + "\n"),
            ("resolv.conf", setup.resolv_conf),
            ("hosts", setup.hosts or own),
        ):
            if text:
                create_text(f"{paths.ETC}/{name}", text)

    def _set_sysctls(self, wanted: dict[str, str]) -> None:
        for name, value in wanted.items():
            if self._sysctls.get(name) != value:
                set_sysctl(name, value)
                self._sysctls[name] = value

    def _network(self, interfaces: tuple[Interface, ...]) -> None:
        with Netlink() as kernel:
            for device, name in self._names.items():
                # Routes and neighbours go with the link that goes down.
                index = socket.if_nametoindex(name)
                links.set_link(kernel, index, up=False)
                links.remove_addresses(kernel, index)
                if name != device:
                    links.set_link(kernel, index, name=device)
            self._names = {}
            for interface in interfaces:
                device = net.interface(interface.at)
                self._names[device] = interface.name
                _interface(kernel, interface, device)


def set_sysctl(name: str, value: str) -> None:
    """Write one sysctl; both separators of sysctl.d(5) are understood."""
    if not _SYSCTL_NAME.fullmatch(name) or ".." in name:
        raise Refused("invalid", f"{name!r} is not the name of a sysctl")
    # With dots as separators a slash stands for a dot within a name (an interface eth0.5).
    slashes = "/" in name and ("." not in name or name.index("/") < name.index("."))
    path = name if slashes else name.translate(str.maketrans("./", "/."))
    try:
        write_text(f"/proc/sys/{path}", value)
    except OSError as error:
        raise Refused("invalid", f"cannot set sysctl {name} to {value!r}: {error.strerror}") from error


def _seed(entropy: bytes) -> None:
    """Clones of one template start with one state of the random number generator; random(4)."""
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        pool = struct.pack("=ii", len(entropy) * 8, len(entropy)) + entropy
        fcntl.ioctl(fd, _RNDADDENTROPY, pool)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def _interface(kernel: Netlink, interface: Interface, device: str) -> None:
    doing = "find it"
    try:
        index = socket.if_nametoindex(device)
        doing = "set it up"
        if interface.name != device:
            links.set_link(kernel, index, up=False)
            links.set_link(kernel, index, name=interface.name)
        if interface.mac:
            links.set_link(kernel, index, mac=interface.mac)
        with suppress(OSError):
            write_text(f"/proc/sys/net/ipv6/conf/{interface.name}/accept_ra", "0")
        if any(":" in address for address in interface.addresses):
            write_text(f"/proc/sys/net/ipv6/conf/{interface.name}/disable_ipv6", "0")
        links.set_link(kernel, index, mtu=interface.mtu, up=True)
        for address in interface.addresses:
            doing = f"add the address {address}"
            links.add_address(kernel, index, address)
        for neighbour in interface.neighbours:
            doing = f"add the neighbour {neighbour.address}"
            links.add_neighbour(kernel, index, neighbour)
        for route in sorted(interface.routes, key=lambda route: bool(route.gateway)):
            doing = f"add the route to {route.destination}"
            links.add_route(kernel, index, route)
    except (OSError, ValueError) as error:
        raise Refused("invalid", f"interface {interface.name}: cannot {doing}: {error}") from error
