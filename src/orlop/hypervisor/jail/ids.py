"""Users for jails: a range of the host's uids and gids for each machine that nothing else on the host has.

Inside, a machine's process is root over the users 0 to 65535, which the host knows by its range, and over
those from 65536 up to :data:`FIRST`, which are the same on both sides (volumes may belong to them). So
no id that counts on the host is within reach: not root, not a person's, not another machine's.

A range is taken by a symbolic link with its number as the name, which leads to the machine's directory. When
that is removed, after the machine's end, the link leads nowhere and the range is free: nobody has to give it
back, and a daemon that is killed forgets none. Links that lead nowhere are looked for now and then.
"""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

from orlop.errors import ResourceExhausted

FIRST = 1 << 31
"""No distribution gives ids from here on to anybody."""
LENGTH = 1 << 16
_RANGES = (1 << 15) - 1
_SWEEP = 64
_claiming = threading.Lock()


def claim(directory: Path, machine: Path) -> int:
    """The first id of a range for ``machine``, a directory that exists. Raises ResourceExhausted, OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Two at once could each take away what they see as free, and the other has just taken.
    with _claiming:
        number = _lowest(directory)
        if number % _SWEEP == 0 or number >= _RANGES:
            _forget_ended(directory)
            number = _lowest(directory)
        if number >= _RANGES:
            raise ResourceExhausted(f"all {_RANGES} ranges of user ids for VMs are taken: see {directory}")
        (directory / str(number)).symlink_to(machine)
        return FIRST + number * LENGTH


def _lowest(directory: Path) -> int:
    taken = {path.name for path in directory.iterdir()}
    return next(number for number in itertools.count() if str(number) not in taken)


def _forget_ended(directory: Path) -> None:
    for link in list(directory.iterdir()):
        if not link.exists():
            link.unlink()


def id_map(owner: int) -> str:
    """The text of ``uid_map`` and ``gid_map`` for the range that starts with ``owner``;
    user_namespaces(7)."""
    return f"0 {owner} {LENGTH}\n{LENGTH} {LENGTH} {FIRST - LENGTH}\n"


def outside(ids: range, owner: int) -> list[tuple[range, int]]:
    """What the host calls ``ids`` of the jail of ``owner``: parts of them, each with the first id outside."""
    low = range(ids.start, min(ids.stop, LENGTH))
    high = range(max(ids.start, LENGTH), ids.stop)
    return [(part, start) for part, start in ((low, owner + low.start), (high, high.start)) if part]
