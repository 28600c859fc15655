"""Control groups without root: paths, files written, counters read, on trees made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.host import cgroups, cgroupstats
from orlop.host.cgroups import Cgroup, DiskLimit, Hierarchy, Limits
from orlop.linux.usage import Pressure


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("", "/"),
        ("a/b", "/a/b"),
        ("/kubepods/burstable/pod1", "/kubepods/burstable/pod1"),
        ("kubepods.slice", "/kubepods.slice"),
        (
            "kubepods-burstable-pod_1.slice",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod_1.slice",
        ),
        ("/a.slice/a-b.slice", "/a.slice/a-b.slice"),
        ("-.slice", "/"),
    ],
)
def test_slices_are_expanded(name: str, path: str) -> None:
    assert cgroups.expand(name) == path


@pytest.mark.parametrize("name", ["../x", "a/../../b", "a--b.slice", "-a.slice", "a-.slice", "a\0b"])
def test_paths_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        cgroups.expand(name)


@given(st.text(max_size=30))
def test_any_name_stays_below_the_root(name: str) -> None:
    try:
        path = cgroups.expand(name)
    except InvalidArgument:
        return
    assert path.startswith("/")
    assert ".." not in path.split("/")


def _mountinfo(tmp_path: Path, *mounts: tuple[str, str, str]) -> Path:
    lines = [
        f"{n} 1 0:{n} / {place} rw - {kind} none {options}" for n, (kind, place, options) in enumerate(mounts)
    ]
    path = tmp_path / "mountinfo"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_version_with_the_controllers_is_found(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    mixed = _mountinfo(
        tmp_path,
        ("cgroup", "/c/cpu,cpuacct", "rw,cpu,cpuacct"),
        ("cgroup", "/c/memory", "rw,memory"),
        ("cgroup", "/c/systemd", "rw,xattr,name=systemd"),
        ("cgroup2", str(tmp_path), "rw"),
    )
    found = cgroups.detect(mountinfo=mixed)
    assert found.version == 1
    assert found.controllers["cpuacct"] == Path("/c/cpu,cpuacct")
    assert found.others == (Path("/c/systemd"), tmp_path)
    pure = cgroups.detect(mountinfo=_mountinfo(tmp_path, ("cgroup2", str(tmp_path), "rw")))
    assert (pure.version, set(pure.controllers)) == (2, {"cpu", "io", "memory", "pids"})
    with pytest.raises(FailedPrecondition):
        cgroups.detect(mountinfo=_mountinfo(tmp_path, ("proc", "/proc", "rw")))


@pytest.mark.parametrize(("shares", "weight"), [(0, 1), (2, 1), (1024, 39), (262144, 10000), (10**9, 10000)])
def test_shares_become_weights(shares: int, weight: int) -> None:
    assert cgroups.weight(shares) == weight


def test_limits_become_files_of_version_2() -> None:
    limits = Limits(
        cpu_quota=50000,
        cpu_shares=1024,
        memory_limit=1 << 20,
        swap_limit=3 << 20,
        pids_limit=-1,
        hugepage_limits=(("2MB", 0),),
        disks=(DiskLimit(device="8:0", read_bytes=5, write_operations=6),),
        unified=(("memory.high", "12"),),
    )
    assert cgroups.unified_files(limits) == [
        ("cpu.max", "50000 100000"),
        ("cpu.weight", "39"),
        ("memory.max", str(1 << 20)),
        ("memory.swap.max", str(2 << 20)),
        ("pids.max", "max"),
        ("hugetlb.2MB.max", "0"),
        ("io.max", "8:0 rbps=5 wbps=max riops=max wiops=6"),
        ("memory.high", "12"),
    ]
    assert cgroups.unified_files(Limits()) == []
    with pytest.raises(InvalidArgument):
        cgroups.unified_files(Limits(unified=(("../cgroup.procs", "1"),)))


def test_limits_become_files_of_version_1() -> None:
    limits = Limits(cpu_period=1000, cpu_quota=-1, memory_limit=5, swap_limit=6, cpuset_cpus="0")
    assert [name for name, _ in cgroups.legacy_files(limits)] == [
        "cpu.cfs_period_us",
        "cpu.cfs_quota_us",
        "cpuset.cpus",
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
    ]


def test_limits_of_disks_become_files_of_version_1() -> None:
    limit = DiskLimit(device="8:0", read_bytes=1, write_bytes=2, read_operations=3)
    assert cgroups.legacy_files(Limits(disks=(limit,))) == [
        ("blkio.throttle.read_bps_device", "8:0 1"),
        ("blkio.throttle.write_bps_device", "8:0 2"),
        ("blkio.throttle.read_iops_device", "8:0 3"),
        ("blkio.throttle.write_iops_device", "8:0 0"),
    ]


def test_disks_are_those_that_hold_something(tmp_path: Path) -> None:
    for name, device, size in (
        ("sda", "8:0", 9),
        ("sr0", "11:0", 0),
        ("loop0", "7:0", 9),
        ("zram0", "252:0", 9),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(f"{size}\n")
        (tmp_path / name / "dev").write_text(f"{device}\n")
    (tmp_path / "gone").mkdir()
    assert cgroups.disks(tmp_path) == ["8:0"]


def test_a_host_without_the_controller_of_disks_says_so(tmp_path: Path) -> None:
    group = cgroups.Cgroup("/a", cgroups.Hierarchy(2, tmp_path, {"memory": tmp_path}))
    with pytest.raises(FailedPrecondition, match="no controller of disks"):
        group.set(Limits(disks=(DiskLimit(device="8:0", read_bytes=1),)))


def test_counters_of_version_2(tmp_path: Path) -> None:
    group = Cgroup("/pod", Hierarchy(2, tmp_path, {"memory": tmp_path}))
    (tmp_path / "pod").mkdir()
    files = {
        "memory.current": "1000\n",
        "memory.max": "max\n",
        "memory.stat": "anon 400\ninactive_file 300\npgfault 7\npgmajfault 2\n",
        "memory.events": "low 0\noom 1\noom_kill 1\n",
        "cpu.stat": "usage_usec 12\nuser_usec 5\n",
        "pids.current": "3\n",
        "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0\n8:16 rbytes=1 wbytes=1 rios=1 wios=1\n",
        "memory.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=4\n",
    }
    for name, text in files.items():
        (tmp_path / "pod" / name).write_text(text)
    used = cgroupstats.usage(group, full=True, members=True)
    assert (used.memory, used.working_set, used.rss, used.memory_limit) == (1000, 700, 400, 0)
    assert (used.cpu_ns, used.pids, used.oom_kills) == (12000, 3, 1)
    assert (used.read_bytes, used.write_bytes, used.reads, used.writes) == (11, 21, 2, 3)
    assert used.memory_pressure == Pressure(some_avg10=1.5, some_total=9, full_total=4)
    assert used.cpu_pressure is None


def test_counters_of_version_1(tmp_path: Path) -> None:
    names = ("memory", "cpu", "cpuacct", "pids", "blkio")
    beside = tmp_path / "unified"
    group = Cgroup(
        "/pod", Hierarchy(1, tmp_path, {name: tmp_path / name for name in names}, (beside,), beside)
    )
    files = {
        "memory/pod/memory.usage_in_bytes": "1000",
        "memory/pod/memory.limit_in_bytes": str(2**63 - 4096),
        "memory/pod/memory.memsw.usage_in_bytes": "1500",
        "memory/pod/memory.max_usage_in_bytes": "1600",
        "memory/pod/memory.failcnt": "8",
        "memory/pod/memory.kmem.usage_in_bytes": "60",
        "memory/pod/memory.stat": "total_rss 400\ntotal_inactive_file 300\ntotal_pgfault 7\n"
        "total_cache 350\ntotal_mapped_file 90\n",
        "memory/pod/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "cpu/pod/cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 3000\n",
        "cpuacct/pod/cpuacct.usage": "12000",
        "cpuacct/pod/cpuacct.stat": "user 2\nsystem 3\n",
        "pids/pod/pids.current": "3",
        "pids/pod/pids.max": "max",
        "pids/pod/cgroup.procs": "10\n11\n",
        "pids/pod/below/cgroup.procs": "12\n",
        "unified/pod/cpu.pressure": "some avg10=0.50 avg60=0.00 avg300=0.00 total=7\n",
        "blkio/pod/blkio.throttle.io_service_bytes_recursive": "8:0 Read 5\n8:0 Write 6\nTotal 11\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    used = cgroupstats.usage(group, full=True, members=True)
    assert (used.memory, used.working_set, used.swap, used.memory_limit) == (1000, 700, 500, 0)
    assert (used.cpu_ns, used.cpu_user_ns, used.cpu_system_ns) == (12000, 20_000_000, 30_000_000)
    assert (used.cpu_periods, used.cpu_throttled_periods, used.cpu_throttled_ns) == (9, 4, 3000)
    assert (used.cache, used.mapped_file, used.kernel_memory) == (350, 90, 60)
    assert (used.memory_peak, used.memory_failures) == (1600, 8)
    assert (used.pids, used.pids_limit, used.processes, used.oom_kills) == (3, 0, 3, 2)
    assert (used.read_bytes, used.write_bytes) == (5, 6)
    assert used.cpu_pressure == Pressure(some_avg10=0.5, some_total=7)
