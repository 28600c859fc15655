"""What each judge is asked, and what it says: trials by name, each "ok" or why not.

A place is wherever a program can be run: in a container, or on the host. The programs and :data:`FILES` are
in one directory of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

OK = "ok"
SKIPPED = "not tried"
"""It would mount the file system anew."""


SEEDS = (1, 2)
"""What fsx draws its operations from: the same ones each time."""
OPERATIONS = 1000
SIZE = "16m"

Findings = dict[str, str]
"""What became of each trial."""


@dataclass(frozen=True)
class Place:
    """Where programs are run. ``run`` gives exit code and output; ``programs`` is where they are."""

    name: str
    run: Callable[..., tuple[int, str]]
    programs: str
    scratch: str


_WEIGHTS = {
    "close_open": 2,
    "invalidate": 1,
    "mapread": 10,
    "mapwrite": 10,
    "read": 10,
    "write": 10,
    "truncate": 4,
    "fsync": 1,
    "fdatasync": 1,
    "sendfile": 4,
    "posix_fadvise": 2,
    "copy_file_range": 4,
}
_PLAIN = ("read", "write", "close_open", "truncate", "fsync", "fdatasync", "posix_fadvise", "sendfile")
_NOT_OF_DEVICES = ("close_open", "truncate", "copy_file_range")


def _fsx(head: str, weights: Mapping[str, int]) -> str:
    return f"{head}\n[weights]\n" + "".join(f"{name} = {weight}\n" for name, weight in weights.items())


def _without(*names: str) -> dict[str, int]:
    # One that is not named has a weight of its own there.
    return _WEIGHTS | dict.fromkeys(names, 0)


FILES = {
    "plain.toml": _fsx("", {name: _WEIGHTS[name] if name in _PLAIN else 0 for name in _WEIGHTS}),
    "mapped.toml": _fsx("", _without("copy_file_range")),
    "unsynced.toml": _fsx("nomsyncafterwrite = true", _without("copy_file_range")),
    "ranges.toml": _fsx("", _without()),
    "holes.toml": _fsx("", _without() | {"posix_fallocate": 3, "punch_hole": 3}),
    "device.toml": _fsx(
        "flen = 8388608\nblockmode = true\nnosizechecks = true\n[opsize]\nalign = 4096\nmin = 4096",
        _without(*_NOT_OF_DEVICES),
    ),
    # Times of files have the grain of the kernel's clock, 4 ms on Debian. The users are any distribution's.
    "pjdfstest.toml": (
        "[features]\nposix_fallocate = {}\nrename_ctime = {}\nstat_st_birthtime = {}\nutime_now = {}\n"
        "utimensat = {}\n"
        "[settings]\nnaptime = 0.02\nallow_remount = false\n"
        '[dummy_auth]\nentries = [["nobody", "nogroup"], ["daemon", "daemon"]]\n'
    ),
}

_VERIFIED = f"--size={SIZE} --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7"
_FIO = {
    "random writes, synced": f"--ioengine=psync --rw=randwrite --bs=4k --fsync=64 {_VERIFIED}",
    "random writes of odd sizes": f"--ioengine=psync --rw=randwrite --bsrange=512-96k {_VERIFIED}",
    "reads beside writes": f"--ioengine=psync --rw=randrw --bs=8k {_VERIFIED}",
    "O_DIRECT": f"--ioengine=psync --direct=1 --rw=randwrite --bs=4k {_VERIFIED}",
    "vectors": f"--ioengine=pvsync2 --rw=randwrite --bs=16k {_VERIFIED}",
}
_FIO_FILES = {
    # Of a device fio 3.33 reads zeros that way, on the host as well: fsx maps it.
    "mmap": f"--ioengine=mmap --rw=randwrite --bs=4k {_VERIFIED}",
    "four writers, a file each": f"--ioengine=psync --numjobs=4 --rw=randwrite --bs=16k {_VERIFIED}",
    "fallocate, then writes": f"--ioengine=psync --fallocate=posix --rw=randwrite --bs=4k {_VERIFIED}",
    "fallocate by itself": "--ioengine=falloc --rw=randwrite --bs=64k --size=8m",
    "holes": "--ioengine=falloc --rw=randtrim --bs=64k --size=8m",
}
_FIO_DEVICES = {"discard, then writes": f"--ioengine=psync --rw=trimwrite --bs=64k {_VERIFIED}"}


def _last(output: str, pattern: str = r"\S") -> str:
    """What a program says last that matters, on one line."""
    lines = [line.strip() for line in output.splitlines() if re.search(pattern, line)]
    return lines[-1][:160] if lines else "no word"


def fio(place: Place, where: str, device: bool) -> Findings:
    """Data that is written is what is read: one fio for each way of writing."""
    target = f"--filename={where}" if device else f"--directory={where}"
    found = {}
    for name, options in {**_FIO, **(_FIO_DEVICES if device else _FIO_FILES)}.items():
        words = [
            "--name=judge",
            "--thread",
            "--minimal",
            "--unlink=1",
            "--verify_state_save=0",
            target,
            *options.split(),
        ]
        code, output = place.run(f"{place.programs}/fio", *words)
        found[name] = OK if code == 0 else _last(output, r"fio: |verify|error|Error")
    return found


def fsx(place: Place, where: str, device: bool) -> Findings:
    """One file that is written, mapped, cut and read in random turns, and is always what it should be."""
    found = {}
    kinds = ("device",) if device else ("plain", "mapped", "unsynced", "ranges", "holes")
    for kind in kinds:
        for seed in SEEDS:
            name = where if device else f"{where}/fsx-{kind}-{seed}"
            words = ["-f", f"{place.programs}/{kind}.toml", "-N", f"{OPERATIONS}", "-S", f"{seed}"]
            code, output = place.run(f"{place.programs}/fsx", *words, "-P", place.scratch, name)
            found[f"{kind}, {seed}"] = (
                OK if code == 0 else _last(output, r"(?i)error|mismatch|fail|unsupp|not sup")
            )
    return found


_CASES = (
    *("chmod::", "chown::", "truncate::", "mkdir::", "mkfifo::", "mknod::", "open::", "posix_fallocate::"),
    *("rename::", "rmdir::", "symlink::", "unlink::", "utimensat::"),
    # Not link::link_count_max, which makes 65,000 links: by 9p that takes longer than all others.
    *("link::changed", "link::e", "link::remove", "link::share", "link::unchanged"),
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CASE = re.compile(r"^(\S+(?:::\S+)+)\s+(ok|FAILED|skipped)$")


def pjdfstest(place: Place, where: str, device: bool) -> Findings:
    """What POSIX says of each call, its errors and the times that it changes."""
    if device:
        return {}
    words = ["-c", f"{place.programs}/pjdfstest.toml", "-p", where, "-s", "/dev/shm", *_CASES]
    code, output = place.run(f"{place.programs}/pjdfstest", *words)
    found: Findings = {}
    name, skipped = "", False
    for line in _COLOUR.sub("", output).splitlines():
        if case := _CASE.match(line.strip()):
            name = case[1]
            found[name] = OK if case[2] == "ok" else ""
            skipped = case[2] == "skipped"
        elif name and line.strip() and not line.startswith(("Backtrace", "Summary")):
            found[name] = found[name] or (SKIPPED if skipped else line.strip()[:160])
    if not re.search(r"Summary", output):
        found["the whole"] = f"ended with {code}: {_last(output)}"
    return found


JUDGES: dict[str, Callable[[Place, str, bool], Findings]] = {"fio": fio, "fsx": fsx, "pjdfstest": pjdfstest}
