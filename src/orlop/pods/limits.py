"""Limits of setrlimit(2) that a pod or a container wishes for in its annotations.

CRI has no field for them. ``rlimits.orlop.io/container.NAME`` is for one container, ``rlimits.orlop.io/pod``
for all: ``NOFILE=65536:1048576, MEMLOCK=infinity``, soft and hard value, or one for both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.linux import limits
from orlop.sandbox.rules import RLIMITS
from orlop.sandbox.spec import Rlimit

POD = "rlimits.orlop.io/pod"
CONTAINER = "rlimits.orlop.io/container."
_WISH = re.compile(
    r"(?:RLIMIT_)?([A-Z]+)\s*=\s*(\d{1,19}|infinity|unlimited|-1)(?::(\d{1,19}|infinity|unlimited|-1))?"
)
_NODES = dict(limits.DEFAULTS)


def wished(annotations: Mapping[str, str], container: str) -> dict[str, Rlimit]:
    """What ``annotations`` say for ``container``, by name. Raises InvalidArgument."""
    found: dict[str, Rlimit] = {}
    for key in (POD, CONTAINER + container):
        for word in annotations.get(key, "").split(","):
            if word.strip():
                limit = _parse(key, word.strip())
                found[limit.name] = limit
    return found


def check_on_host(container: str, wishes: Mapping[str, Rlimit]) -> None:
    """Raise FailedPrecondition for a wish that gives a process of the host more than others there have."""
    for limit in wishes.values():
        most = _NODES.get(limit.name)
        if most is None or (most != limits.INFINITY and not 0 <= limit.hard <= most):
            raise FailedPrecondition(
                f"container {container}: an annotation wishes for RLIMIT_{limit.name} = "
                f"{_said(limit.hard)}, which on the host would be at the other pods' cost; a RuntimeClass "
                "with the handler 'vm' can give it"
            )


def _parse(key: str, word: str) -> Rlimit:
    match = _WISH.fullmatch(word)
    if match is None or match[1] not in RLIMITS:
        raise InvalidArgument(
            f"the annotation {key} says {word[:80]!r}, "
            "and must name limits as NOFILE=SOFT:HARD or NPROC=infinity"
        )
    name = match[1]
    soft = _value(name, match[2])
    return Rlimit(name=name, soft=soft, hard=soft if match[3] is None else _value(name, match[3]))


def _value(name: str, text: str) -> int:
    if text.isdecimal():
        return int(text)
    # More open files than fs.nr_open is no limit that the kernel takes.
    return limits.MOST_FILES if name == "NOFILE" else limits.INFINITY


def _said(value: int) -> str:
    return "infinity" if value == limits.INFINITY else str(value)
