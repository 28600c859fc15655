"""Which capabilities a container gets (capabilities(7); the default set is the one of the field).

``privileged`` means all; otherwise the default set, without the dropped ones, with the added ones.
``ALL`` in either list stands for all of them; a name added or dropped by itself wins over it.
"""

from __future__ import annotations

from collections.abc import Iterable

from orlop.errors import InvalidArgument
from orlop.linux.capabilities import CAPABILITIES

ALL = CAPABILITIES

DEFAULT = frozenset(
    {
        "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
        "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
    }
)  # fmt: skip
"""What a container gets unless it asks for something else."""


def normalise(names: Iterable[str]) -> set[str]:
    """Names in upper case without ``CAP_``; InvalidArgument for one that Linux does not have."""
    result = set()
    for name in names:
        plain = name.upper().removeprefix("CAP_")
        if plain != "ALL" and plain not in ALL:
            raise InvalidArgument(f"capability {name!r} does not exist")
        result.add(plain)
    return result


def effective(add: Iterable[str], drop: Iterable[str], *, privileged: bool) -> tuple[str, ...]:
    """The final set, in the kernel's order."""
    if privileged:
        return ALL
    added, dropped = normalise(add), normalise(drop)
    chosen = set(ALL) if "ALL" in added else set(DEFAULT)
    if "ALL" in dropped:
        chosen = set() if "ALL" not in added else chosen
    chosen -= dropped
    chosen |= added - {"ALL"}
    return tuple(name for name in ALL if name in chosen)
