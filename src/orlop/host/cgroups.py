"""Control groups, version 2 and version 1 (also mixed, where version 1 has the controllers).

A :class:`Cgroup` is one group by its path below the root, whatever the version: under version 1 it
is a directory in each controller's hierarchy. Names of systemd slices are expanded to paths.
Everything is synchronous file access of some tens of microseconds, except :func:`destroy`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath

import msgspec

from orlop.errors import FailedPrecondition, InvalidArgument

ROOT = Path("/sys/fs/cgroup")

_USED = ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "hugetlb", "freezer", "devices")
_MAX_SHARES, _MAX_WEIGHT = 262144, 10000
_NO_GROUPS_BELOW = 2  # links of a directory: its name and "."
_WHOLE = 2048  # the kernel hands out its files by pages: what is shorter than half of one was the last of it
_DESTROY_TIME = 5.0


class DiskLimit(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a group may use the disk ``device`` ("8:0"): bytes and operations a second, 0 for no limit."""

    device: str
    read_bytes: int = 0
    write_bytes: int = 0
    read_operations: int = 0
    write_operations: int = 0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a group. 0 leaves one as it is, -1 (where it makes sense) takes it away.

    Memory in bytes, ``swap_limit`` memory and swap together, periods in microseconds;
    ``unified`` are files of version 2, written as they stand.
    """

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    memory_limit: int = 0
    swap_limit: int = 0
    pids_limit: int = 0
    hugepage_limits: tuple[tuple[str, int], ...] = ()
    disks: tuple[DiskLimit, ...] = ()
    unified: tuple[tuple[str, str], ...] = ()


class Hierarchy(msgspec.Struct, frozen=True):
    """The host's control groups: version 2 at ``root``, or version 1 with a directory per controller.

    ``others`` are hierarchies without controllers beside those of version 1 (systemd's own, an
    empty one of version 2, which is ``beside``): runtimes make groups in them too.
    """

    version: int
    root: Path
    controllers: Mapping[str, Path]
    others: tuple[Path, ...] = ()
    beside: Path | None = None


def detect(root: Path = ROOT, mountinfo: Path = Path("/proc/self/mountinfo")) -> Hierarchy:
    """Look at what is mounted. Raises FailedPrecondition when there are no control groups."""
    v1: dict[str, Path] = {}
    others: list[Path] = []
    unified: Path | None = None
    for line in mountinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        kind, *_, options = after.split(" ")
        place = Path(before.split(" ")[4])
        if kind == "cgroup2" and unified is None:
            unified = place
        elif kind == "cgroup":
            v1 |= {name: place for name in options.split(",") if name in _USED and name not in v1}
            if "name=systemd" in options.split(","):
                others.append(place)
    if "memory" in v1 or ("cpu" in v1 and unified is None):
        beside = [unified] if unified is not None else []
        return Hierarchy(1, root, v1, (*others, *beside), unified)
    if unified is None:
        raise FailedPrecondition("the host has no control groups: neither cgroup2 nor cgroup is mounted")
    names = (unified / "cgroup.controllers").read_text(encoding="ascii").split()
    return Hierarchy(2, unified, dict.fromkeys(names, unified))


@cache
def hierarchy() -> Hierarchy:
    """The host's control groups, looked up once. Raises FailedPrecondition when there are none."""
    return detect()


def expand(name: str) -> str:
    """A cgroup parent as a path below the root: ``a-b.slice`` becomes ``/a.slice/a-b.slice``.

    Plain paths stay as they are. Raises InvalidArgument for one that leads out of the root.
    """
    path = PurePosixPath("/", name)
    if ".." in path.parts or "\0" in name:
        raise InvalidArgument(f"cgroup parent {name[:200]!r} is not a path below the cgroup root")
    if not name.endswith(".slice") or "/" in name.strip("/"):
        return str(path)
    stem = path.name.removesuffix(".slice")
    if stem in ("", "-"):
        return "/"
    if stem.startswith("-") or stem.endswith("-") or "--" in stem:
        raise InvalidArgument(f"cgroup parent {name[:200]!r} is not a systemd slice")
    parts = stem.split("-")
    return "/" + "/".join("-".join(parts[: n + 1]) + ".slice" for n in range(len(parts)))


class Cgroup:
    """The group at ``path`` below the root. Nothing is created before :meth:`create`."""

    def __init__(self, path: str, host: Hierarchy | None = None, *, own: Mapping[str, str] | None = None):
        self.host = host or hierarchy()
        self.path = expand(path)
        self._own = dict(own or {})
        self._places: dict[str, str] = {}
        self._beside = ""

    @classmethod
    def of_process(cls, pid: int, host: Hierarchy | None = None) -> Cgroup:
        """The group that a process is in. Raises ProcessLookupError when there is no such process."""
        host = host or hierarchy()
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), str(pid)) from error
        own: dict[str, str] = {}
        for line in lines:
            _, names, path = line.split(":", 2)
            own |= {name or "unified": path for name in names.split(",")}
        fallback = own.get("unified" if host.version == 2 else "memory", "/")
        return cls(fallback, host, own=own if host.version == 1 else None)

    def directory(self, controller: str = "") -> Path:
        """The group's directory, under version 1 that of a controller. Raises KeyError for an unknown one."""
        if self.host.version == 2:
            return self.host.root / self.path.lstrip("/")
        base = self.host.controllers[controller or "memory"]
        return base / self._own.get(controller, self.path).lstrip("/")

    def directories(self) -> list[Path]:
        """All directories of the group."""
        if self.host.version == 2:
            return [self.directory()]
        return list(dict.fromkeys(self.directory(name) for name in self.host.controllers))

    def exists(self) -> bool:
        """Whether the group is there."""
        return any(directory.is_dir() for directory in self.directories())

    def create(self) -> None:
        """Make the group and those above it, with all controllers. Idempotent. Raises OSError."""
        if self.host.version == 2:
            self._create_unified()
            return
        for directory in self.directories():
            directory.mkdir(parents=True, exist_ok=True)
        if "cpuset" in self.host.controllers:
            self._inherit_cpuset()

    def _create_unified(self) -> None:
        wanted = [f"+{name}" for name in self.host.controllers if name in _V2_WANTED]
        place = self.host.root
        for part in PurePosixPath(self.path).parts[1:]:
            try:
                _write(place / "cgroup.subtree_control", " ".join(wanted))
            except OSError:
                # A controller that cannot be handed on (realtime processes, threads) is not fatal.
                for name in wanted:
                    with suppress(OSError):
                        _write(place / "cgroup.subtree_control", name)
            place /= part
            place.mkdir(exist_ok=True)

    def _inherit_cpuset(self) -> None:
        """A new cpuset of version 1 is empty and accepts no process until it has what its parent has."""
        base = self.host.controllers["cpuset"]
        chain = [self.directory("cpuset"), *self.directory("cpuset").parents]
        for directory in reversed(chain[: chain.index(base)]):
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not (directory / name).read_text(encoding="ascii").strip():
                    _write(directory / name, (directory.parent / name).read_text(encoding="ascii").strip())

    def add(self, pid: int) -> None:
        """Move a process into the group. Raises OSError."""
        for directory in self.directories():
            _write(directory / "cgroup.procs", str(pid))

    def processes(self) -> list[int]:
        """The processes in the group and in those below it."""
        found: set[int] = set()
        for directory in self.directories():
            for place, _names, _files in os.walk(directory):
                with suppress(OSError):
                    found |= {int(pid) for pid in (Path(place) / "cgroup.procs").read_text().split()}
        return sorted(found)

    def set(self, limits: Limits) -> None:
        """Apply limits. Raises OSError with the file's name, FailedPrecondition for what the host lacks."""
        if limits.disks and not {"io", "blkio"} & self.host.controllers.keys():
            raise FailedPrecondition("the host's control groups have no controller of disks (io, blkio)")
        if self.host.version == 2:
            for name, value in unified_files(limits):
                _write(self.directory() / name, value)
            return
        if limits.unified:
            raise FailedPrecondition("unified resources need control groups of version 2 on the host")
        memory = [(n, v) for n, v in legacy_files(limits) if n.startswith("memory.")]
        others = [(n, v) for n, v in legacy_files(limits) if not n.startswith("memory.")]
        for name, value in others:
            self._set_legacy(name, value)
        try:
            for name, value in memory:
                self._set_legacy(name, value)
        except OSError:
            # Memory must stay below memory and swap: which comes first depends on the direction.
            for name, value in reversed(memory):
                self._set_legacy(name, value)
            for name, value in memory:
                self._set_legacy(name, value)

    def memory_limit(self) -> int:
        """What the group may use in bytes; -1 when there is no bound, no such group or no such controller."""
        text = self.read("memory.max" if self.host.version == 2 else "memory.limit_in_bytes", "memory")
        return int(text) if text.strip().isdecimal() else -1

    def cpu_limit(self) -> float:
        """How many processors the group may use; -1 when there is no bound, no such group or controller."""
        if self.host.version == 2:
            words = self.read("cpu.max", "cpu").split()
        else:
            words = [self.read(name, "cpu").strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        if len(words) != 2 or not all(word.isdecimal() for word in words):
            return -1.0
        return int(words[0]) / max(int(words[1]), 1)

    def _set_legacy(self, name: str, value: str) -> None:
        controller = name.partition(".")[0]
        if controller not in self.host.controllers:
            return
        _write(self.directory(controller) / name, value)

    def read(self, name: str, controller: str = "") -> str:
        """A file of the group, or "" when it is not there."""
        place = self._places.get(controller)
        if place is None:
            try:
                place = self._places[controller] = os.fspath(self.directory(controller))
            except KeyError:
                return ""
        return _read(f"{place}/{name}")

    def read_beside(self, name: str) -> str:
        """A file that only version 2 has, where that is mounted beside version 1; else ""."""
        if self.host.beside is None:
            return ""
        if not self._beside:
            self._beside = os.fspath(self.host.beside / self.path.lstrip("/"))
        return _read(f"{self._beside}/{name}")

    def members(self, controller: str = "") -> list[int]:
        """The processes in the group and below it, as one controller's hierarchy has them."""
        try:
            pending = [os.fspath(self.directory(controller))]
        except KeyError:
            return []
        found = []
        while pending:
            place = pending.pop()
            found += [int(pid) for pid in _read(f"{place}/cgroup.procs").split()]
            with suppress(OSError):
                # Most have no group below: then there is nothing to list.
                if Path(place).stat().st_nlink != _NO_GROUPS_BELOW:
                    pending += [entry.path for entry in os.scandir(place) if entry.is_dir()]
        return found

    def freeze(self, *, frozen: bool) -> None:
        """Have all processes in the group and below stop where they are, or go on. Raises OSError.

        The kernel takes its time: see :attr:`frozen`.
        """
        if self.host.version == 2:
            _write(self.directory() / "cgroup.freeze", "1" if frozen else "0")
        elif "freezer" in self.host.controllers:
            _write(self.directory("freezer") / "freezer.state", "FROZEN" if frozen else "THAWED")
        else:
            raise OSError(errno.EOPNOTSUPP, "the host has no control groups that stop processes", self.path)

    @property
    def frozen(self) -> bool:
        """Whether all processes in the group stand still."""
        if self.host.version == 2:
            return "frozen 1" in self.read("cgroup.events")
        return self.read("freezer.state", "freezer").strip() == "FROZEN"

    def kill(self) -> bool:
        """Send KILL to all processes in the group and below; false when there were none."""
        if self.host.version == 2:
            try:
                populated = "populated 1" in self.read("cgroup.events")
                _write(self.directory() / "cgroup.kill", "1")
            except OSError:  # a kernel before 5.14
                pass
            else:
                return populated
        pids = self.processes()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.host.version == 1 and self.read("freezer.state", "freezer").startswith("FR"):
            # There, one that was stopped hears of it when it goes on.
            with suppress(OSError):
                self.freeze(frozen=False)
        return bool(pids)

    def remove(self) -> None:
        """Remove the group and those below it. Idempotent. Raises OSError EBUSY while processes are in it."""
        others = [place / self.path.lstrip("/") for place in self.host.others]
        for directory in [*self.directories(), *others]:
            for place, _names, _files in os.walk(directory, topdown=False):
                with suppress(FileNotFoundError):
                    Path(place).rmdir()


async def destroy(group: Cgroup) -> None:
    """Kill what is in the group and remove it, waiting up to 5 seconds for the processes to end.

    Idempotent. Raises OSError EBUSY when they do not.
    """
    delay = 0.002
    loop = asyncio.get_running_loop()
    end = loop.time() + _DESTROY_TIME
    while True:
        group.kill()
        try:
            group.remove()
        except OSError as error:
            if error.errno != errno.EBUSY or loop.time() > end:
                raise
        else:
            return
        await asyncio.sleep(delay)
        delay = min(delay * 2, 0.1)


async def leave(path: str) -> None:
    """The same by the group's path; "" is no group. Idempotent."""
    if path:
        await destroy(Cgroup(path))


def disks(root: Path = Path("/sys/block")) -> list[str]:
    """The host's disks as groups know them ("8:0"), without what lies in memory or files."""
    found = []
    for place in sorted(root.iterdir()):
        if not place.name.startswith(("loop", "ram", "zram")):
            with suppress(OSError):  # one that has just been taken out
                if int((place / "size").read_text(encoding="ascii")):
                    found.append((place / "dev").read_text(encoding="ascii").strip())
    return found


_V2_WANTED = ("cpu", "cpuset", "memory", "pids", "io", "hugetlb")


def _read(path: str) -> str:
    """A file of the kernel's, or "" when it is not there or says nothing now."""
    # Read a thousand times for each question of a kubelet: pathlib would take four times as long.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    data = b""
    try:
        while chunk := os.read(descriptor, 65536):
            data += chunk
            if len(chunk) < _WHOLE:
                break
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return data.decode("ascii", "replace")


def _write(path: Path, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)} ({value[:60]!r})", str(path)) from error
    finally:
        os.close(descriptor)


def weight(shares: int) -> int:
    """CPU shares of version 1 (2..262144) as a weight of version 2 (1..10000)."""
    shares = min(max(shares, 2), _MAX_SHARES)
    return 1 + (shares - 2) * (_MAX_WEIGHT - 1) // (_MAX_SHARES - 2)


def unified_files(limits: Limits) -> list[tuple[str, str]]:
    """The files of version 2 to write for ``limits``, in order."""
    found: list[tuple[str, str]] = []
    if limits.cpu_quota or limits.cpu_period:
        quota = str(limits.cpu_quota) if limits.cpu_quota > 0 else "max"
        found.append(("cpu.max", f"{quota} {limits.cpu_period or 100000}"))
    if limits.cpu_shares:
        found.append(("cpu.weight", str(weight(limits.cpu_shares))))
    found += _cpusets(limits)
    if limits.memory_limit:
        found.append(("memory.max", _or_max(limits.memory_limit)))
    if limits.swap_limit:
        swap = limits.swap_limit - max(limits.memory_limit, 0) if limits.swap_limit > 0 else -1
        found.append(("memory.swap.max", str(max(swap, 0)) if swap >= 0 else "max"))
    if limits.pids_limit:
        found.append(("pids.max", _or_max(limits.pids_limit)))
    found += [(f"hugetlb.{size}.max", str(limit)) for size, limit in limits.hugepage_limits]
    for disk in limits.disks:
        values = (disk.read_bytes, disk.write_bytes, disk.read_operations, disk.write_operations)
        words = zip(("rbps", "wbps", "riops", "wiops"), map(_or_max, values), strict=True)
        found.append(("io.max", " ".join((disk.device, *(f"{name}={value}" for name, value in words)))))
    for name, value in limits.unified:
        if "/" in name or name.startswith((".", "cgroup.")):
            raise InvalidArgument(f"unified resource {name[:80]!r} is not a controller's file")
        found.append((name, value))
    return found


def legacy_files(limits: Limits) -> list[tuple[str, str]]:
    """The files of version 1 to write for ``limits``, in order."""
    found: list[tuple[str, str]] = []
    if limits.cpu_period:
        found.append(("cpu.cfs_period_us", str(limits.cpu_period)))
    if limits.cpu_quota:
        found.append(("cpu.cfs_quota_us", str(limits.cpu_quota)))
    if limits.cpu_shares:
        found.append(("cpu.shares", str(limits.cpu_shares)))
    found += _cpusets(limits)
    if limits.memory_limit:
        found.append(("memory.limit_in_bytes", str(limits.memory_limit)))
    if limits.swap_limit:
        found.append(("memory.memsw.limit_in_bytes", str(limits.swap_limit)))
    if limits.pids_limit:
        found.append(("pids.max", _or_max(limits.pids_limit)))
    found += [(f"hugetlb.{size}.limit_in_bytes", str(limit)) for size, limit in limits.hugepage_limits]
    for disk in limits.disks:
        # 0 is no limit there, too.
        found += [
            ("blkio.throttle.read_bps_device", f"{disk.device} {disk.read_bytes}"),
            ("blkio.throttle.write_bps_device", f"{disk.device} {disk.write_bytes}"),
            ("blkio.throttle.read_iops_device", f"{disk.device} {disk.read_operations}"),
            ("blkio.throttle.write_iops_device", f"{disk.device} {disk.write_operations}"),
        ]
    return found


def _cpusets(limits: Limits) -> Iterable[tuple[str, str]]:
    if limits.cpuset_cpus:
        yield "cpuset.cpus", limits.cpuset_cpus
    if limits.cpuset_mems:
        yield "cpuset.mems", limits.cpuset_mems


def _or_max(value: int) -> str:
    return str(value) if value > 0 else "max"
