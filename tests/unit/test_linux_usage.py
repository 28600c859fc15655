"""The figures of a control group, from its files."""

import os
import socket
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from orlop.linux import space, usage
from orlop.linux.usage import DeviceUse

FILES = {
    "cpu.stat": "usage_usec 12\nuser_usec 5\nsystem_usec 7\nnr_periods 9\nnr_throttled 4\nthrottled_usec 3\n",
    "memory.current": "1000\n",
    "memory.max": "max\n",
    "memory.peak": "1700\n",
    "memory.stat": "anon 400\nfile 350\nkernel 60\nfile_mapped 90\ninactive_file 300\n"
    "pgfault 7\npgmajfault 2\n",
    "memory.events": "low 0\nmax 6\noom 1\noom_kill 1\n",
    "memory.swap.current": "5\n",
    "pids.current": "3\n",
    "pids.max": "100\n",
    "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0\n8:16 rbytes=1 wbytes=1 rios=1 wios=1\n7:0 \n",
    "memory.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=4\n",
}


def test_every_figure_of_a_group_is_read() -> None:
    found = usage.unified(lambda name: FILES.get(name, ""), processes=2, open_files=(8, 1))
    assert (found.cpu_ns, found.cpu_user_ns, found.cpu_system_ns) == (12000, 5000, 7000)
    assert (found.cpu_periods, found.cpu_throttled_periods, found.cpu_throttled_ns) == (9, 4, 3000)
    assert (found.memory, found.working_set, found.rss, found.swap) == (1000, 700, 400, 5)
    assert (found.cache, found.mapped_file, found.kernel_memory) == (350, 90, 60)
    assert (found.memory_limit, found.memory_peak, found.memory_failures) == (0, 1700, 6)
    assert (found.page_faults, found.major_page_faults, found.oom_kills) == (7, 2, 1)
    assert (found.pids, found.pids_limit, found.processes) == (3, 100, 2)
    assert (found.descriptors, found.sockets) == (8, 1)
    assert found.devices == (
        DeviceUse(major=8, minor=0, read_bytes=10, write_bytes=20, reads=1, writes=2),
        DeviceUse(major=8, minor=16, read_bytes=1, write_bytes=1, reads=1, writes=1),
    )
    assert (found.read_bytes, found.write_bytes, found.reads, found.writes) == (11, 21, 2, 3)
    assert found.memory_pressure == usage.Pressure(some_avg10=1.5, some_total=9, full_total=4)
    assert found.cpu_pressure is None


def test_older_kernels_tell_less() -> None:
    old = {"memory.current": "1000\n", "memory.stat": "slab 20\nkernel_stack 4\n"}
    found = usage.unified(lambda name: old.get(name, ""))
    assert (found.memory_peak, found.kernel_memory) == (1000, 24)


def test_pressure() -> None:
    found = usage.pressure(
        "some avg10=1.50 avg60=0.20 avg300=0.00 total=12345\n"
        "full avg10=0.50 avg60=0.00 avg300=0.00 total=99\n"
    )
    assert found is not None
    assert (found.some_avg10, found.some_total, found.full_avg10, found.full_total) == (1.5, 12345, 0.5, 99)


@given(st.text(max_size=200))
def test_odd_kernel_files_do_not_break_it(text: str) -> None:
    usage.unified(lambda name: text)


def test_open_files_and_sockets_are_counted() -> None:
    before = usage.open_files([os.getpid()])
    with socket.socket(), Path("/dev/null").open():
        after = usage.open_files([os.getpid(), 4_000_000])
    assert (after[0] - before[0], after[1] - before[1]) == (2, 1)


def test_hard_links_count_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 8192)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "d").mkdir()
    (tmp_path / "s").symlink_to("/nowhere")
    size, inodes = space.taken(str(tmp_path))
    assert size >= 8192
    assert size < 16384 + 4096
    assert inodes == 3
