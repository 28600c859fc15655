"""Small translations of the agent: kernel files, paths, limits, capability masks."""

import struct
from pathlib import Path

import pytest

from orlop.guest.containers import devicefilter
from orlop.guest.launch import credentials
from orlop.guest.launch.lookup import resolve_target
from orlop.guest.launch.userns import outer_id
from orlop.guest.machine import cgroup, links, setup
from orlop.linux import netlink
from orlop.wire.messages import Refused
from orlop.wire.values import GuestDevice, GuestLimits, GuestRlimit, IdRange


def test_limits_become_cgroup_files() -> None:
    found = cgroup.settings(
        GuestLimits(
            cpu_weight=39,
            cpu_quota_us=50000,
            cpu_period_us=100000,
            memory_max=1 << 20,
            pids_max=-1,
            unified=(("memory.high", "5"), ("../escape", "1")),
        )
    )
    assert found == [
        ("cpu.weight", "39"),
        ("cpu.max", "50000 100000"),
        ("memory.max", "1048576"),
        ("pids.max", "max"),
        ("memory.high", "5"),
    ]


def test_nothing_asked_for_sets_nothing() -> None:
    assert cgroup.settings(GuestLimits()) == []


def test_capability_masks() -> None:
    assert credentials.capability_mask(("CHOWN", "CAP_KILL", "net_raw")) == 1 | 1 << 5 | 1 << 13
    with pytest.raises(Refused):
        credentials.capability_mask(("FLY",))


def test_rlimits() -> None:
    assert list(credentials.rlimits((GuestRlimit(name="NOFILE", soft=10, hard=-1),))) == [
        (7, "NOFILE", 10, (1 << 64) - 1)
    ]
    with pytest.raises(Refused):
        list(credentials.rlimits((GuestRlimit(name="FANCY", soft=1, hard=1),)))


def test_attributes_are_padded_to_four_bytes() -> None:
    assert netlink.attribute(3, b"eth0\0") == b"\x09\0\x03\0eth0\0\0\0\0"


@pytest.mark.parametrize("text", ["", "aa:bb", "aa:bb:cc:dd:ee:ff:00", "zz:bb:cc:dd:ee:ff"])
def test_a_bad_mac_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        links.mac_bytes(text)


@pytest.mark.parametrize("name", ["", "net", "../etc/passwd", "net/../../x", "/net/x", "net..x"])
def test_only_names_of_sysctls_are_written(name: str) -> None:
    with pytest.raises(Refused):
        setup.set_sysctl(name, "1")


def test_ids_are_looked_up_in_mappings() -> None:
    mappings = (IdRange(inner=0, outer=100000, length=10), IdRange(inner=50, outer=7, length=1))
    assert [outer_id(number, mappings) for number in (0, 9, 50, 60)] == [100000, 100009, 7, 60]
    assert outer_id(5, ()) == 5


def test_links_of_an_image_stay_within_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/resolv.conf").symlink_to("../run/resolve/stub.conf")
    (root / "etc/hosts").symlink_to("../../../../../../etc/passwd")
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    (root / "loop").symlink_to("/loop")
    found = {
        path: resolve_target(str(root), path)
        for path in ("/etc/resolv.conf", "/etc/hosts", "/var/run/x", "/plain/../y", "/")
    }
    assert found == {
        "/etc/resolv.conf": "/run/resolve/stub.conf",
        "/etc/hosts": "/etc/passwd",
        "/var/run/x": "/run/x",
        "/plain/../y": "/y",
        "/": "/",
    }
    with pytest.raises(Refused):
        resolve_target(str(root), "/loop/x")


@pytest.mark.parametrize(
    ("text", "length", "first", "last"),
    [
        ("10.1.2.3/24", 24, "10.1.2.0", "10.1.2.255"),
        ("10.1.2.3", 32, "10.1.2.3", "10.1.2.3"),
        ("0.0.0.0/0", 0, "0.0.0.0", "255.255.255.255"),
        ("fd00::5/64", 64, "fd00::", "fd00::ffff:ffff:ffff:ffff"),
    ],
)
def test_networks(text: str, length: int, first: str, last: str) -> None:
    family, packed, found = links.network_bytes(text)
    assert found == length
    assert links.masked(packed, length) == links.address_bytes(first)[1]
    assert links.masked(packed, length, fill=True) == links.address_bytes(last)[1]
    assert family == links.address_bytes(first)[0]


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1/33", "10.0.0.1/", "10.0.0.1/-1", "fd00::1/129", "host/8", "1.2/8"]
)
def test_what_is_no_network_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        links.network_bytes(text)


def decide(program: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """Interpret the few BPF instructions that the device filter is made of."""
    registers = [0] * 11
    words = {0: access << 16 | kind, 4: major, 8: minor}
    position = 0
    while True:
        code, both, offset, value = struct.unpack_from("=BBhi", program, position * 8)
        target, source = both & 15, both >> 4
        position += 1
        if code == 0x61:
            registers[target] = words[offset]
        elif code == 0xBC:
            registers[target] = registers[source]
        elif code == 0xB4:
            registers[target] = value
        elif code == 0x54:
            registers[target] &= value
        elif code == 0x74:
            registers[target] >>= value
        elif code == 0x55:
            position += offset if registers[target] != value else 0
        elif code == 0x5D:
            position += offset if registers[target] != registers[source] else 0
        else:
            assert code == 0x95
            return registers[0]


MKNOD, READ, WRITE = 1, 2, 4
BLOCK, CHARACTER = 1, 2


@pytest.mark.parametrize(
    ("kind", "access", "major", "minor", "allowed"),
    [
        (CHARACTER, READ | WRITE, 1, 3, 1),
        (CHARACTER, READ | WRITE, 1, 1, 0),
        (CHARACTER, WRITE, 136, 77, 1),
        (BLOCK, MKNOD, 8, 0, 1),
        (BLOCK, READ, 8, 0, 0),
        (BLOCK, MKNOD | READ, 8, 0, 0),
        (BLOCK, READ, 7, 1, 1),
        (BLOCK, READ | WRITE, 7, 1, 0),
        (CHARACTER, READ, 7, 1, 0),
    ],
)
def test_devices(kind: int, access: int, major: int, minor: int, allowed: int) -> None:
    program = devicefilter.assemble((*devicefilter.DEFAULT, devicefilter.DeviceRule(BLOCK, 7, 1, READ)))
    assert decide(program, kind, access, major, minor) == allowed


def test_accesses_are_letters() -> None:
    rule = devicefilter.rule_of(GuestDevice(path="/dev/null", source="/dev/null", access="rw"))
    assert rule == devicefilter.DeviceRule(CHARACTER, 1, 3, READ | WRITE)
    with pytest.raises(Refused):
        devicefilter.rule_of(GuestDevice(path="/dev/null", source="/dev/null", access="rx"))
    with pytest.raises(Refused):
        devicefilter.rule_of(GuestDevice(path="/dev/null", source="/dev/nowhere"))
