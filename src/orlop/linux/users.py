"""Who a container's process is: /etc/passwd and /etc/group, read as the container sees them.

The files come from an image and are hostile: what does not parse is skipped, and no more than
:data:`MAX_FILE` bytes are read. passwd(5), group(5).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

MAX_FILE = 4 << 20
_KEPT_TEXT = 64 << 10
MAX_ID = (1 << 32) - 2


class UnknownName(LookupError):
    """There is no user, or no group, of that name."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Who is asked for: "name", "uid" or either with ":group"; ``group`` wins over the latter.

    Unless ``strict_groups``, the groups that /etc/group lists for the user are added to those asked for.
    """

    user: str = ""
    group: str = ""
    supplemental_groups: tuple[int, ...] = ()
    strict_groups: bool = False


@dataclass(frozen=True)
class Identity:
    """What to become; ``groups`` has the primary group first."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str = "/"


@dataclass(frozen=True)
class PasswdEntry:
    """A line of passwd(5)."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class GroupEntry:
    """A line of group(5)."""

    name: str
    gid: int
    members: tuple[str, ...]


def _id(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    value = int(text)
    return value if value <= MAX_ID else None


def parse_passwd(text: str) -> list[PasswdEntry]:
    """The well-formed lines of passwd(5)."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) < 4 or line.lstrip().startswith("#"):
            continue
        uid, gid = _id(fields[2]), _id(fields[3])
        if fields[0] and uid is not None and gid is not None:
            home = fields[5] if len(fields) > 5 else ""
            found.append(PasswdEntry(fields[0], uid, gid, home))
    return found


def parse_group(text: str) -> list[GroupEntry]:
    """The well-formed lines of group(5)."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) < 3 or line.lstrip().startswith("#"):
            continue
        gid = _id(fields[2])
        if fields[0] and gid is not None:
            members = fields[3].split(",") if len(fields) > 3 else []
            found.append(GroupEntry(fields[0], gid, tuple(m.strip() for m in members if m.strip())))
    return found


def find(wanted: Wanted, passwd: str, group: str) -> Identity:
    """Find the identity that ``wanted`` asks for, or recall it: each exec asks the same again.

    ``passwd`` and ``group`` are the texts of the two files. A numeric user need not exist. Raises
    UnknownName for a name that does not.
    """
    if len(passwd) + len(group) > _KEPT_TEXT:
        return _find(wanted, passwd, group)
    return _recall(wanted, passwd, group)


@functools.lru_cache(maxsize=16)
def _recall(wanted: Wanted, passwd: str, group: str) -> Identity:
    return _find(wanted, passwd, group)


def _find(wanted: Wanted, passwd: str, group: str) -> Identity:
    user, colon, second = wanted.user.partition(":")
    wanted_group = wanted.group or (second if colon else "")
    users = parse_passwd(passwd)
    groups = parse_group(group)
    uid = _id(user) if user else 0
    if uid is None:
        entry = next((e for e in users if e.name == user), None)
        if entry is None:
            raise UnknownName(f"unable to find user {user}: no matching entries in passwd file")
        uid = entry.uid
    else:
        entry = next((e for e in users if e.uid == uid), None)
    gid = entry.gid if entry is not None else 0
    if wanted_group:
        gid = _group(wanted_group, groups)
    supplemental = list(wanted.supplemental_groups)
    if not wanted.strict_groups and entry is not None:
        supplemental += [g.gid for g in groups if entry.name in g.members]
    home = entry.home if entry is not None and entry.home else "/"
    return Identity(uid, gid, tuple(dict.fromkeys([gid, *supplemental])), home)


def _group(name: str, groups: list[GroupEntry]) -> int:
    gid = _id(name)
    if gid is not None:
        return gid
    entry = next((g for g in groups if g.name == name), None)
    if entry is None:
        raise UnknownName(f"unable to find group {name}: no matching entries in group file")
    return entry.gid
