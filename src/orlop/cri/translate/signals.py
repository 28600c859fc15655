"""Stop signals: CRI has numbers of its own (``SIGNAL_SIGTERM`` is 23), ``pods`` names like ``SIGRTMIN+3``."""

from __future__ import annotations

from orlop.cri import validate
from orlop.cri.api import runtime_v1_pb2 as pb


def _name(enum_name: str) -> str:
    enum_name = enum_name.removeprefix("SIGNAL_")
    for base in ("SIGRTMIN", "SIGRTMAX"):
        for word, sign in (("PLUS", "+"), ("MINUS", "-")):
            if enum_name.startswith(base + word):
                return f"{base}{sign}{enum_name.removeprefix(base + word)}"
    return "" if enum_name == "RUNTIME_DEFAULT" else enum_name


_NAMES: dict[int, str] = {number: _name(key) for key, number in pb.Signal.items()}
_NUMBERS = {name: pb.Signal.ValueType(number) for number, name in _NAMES.items()}
# SIGRTMIN is 34 and SIGRTMAX 64: the upper half has two names.
_NUMBERS.update({f"SIGRTMIN+{30 - n}": _NUMBERS[f"SIGRTMAX-{n}"] for n in range(1, 15)})
_NUMBERS["SIGRTMIN+30"] = _NUMBERS["SIGRTMAX"]


def name_of(number: int, field: str) -> str:
    """The name of CRI's signal, "" for the runtime's default. Raises InvalidArgument."""
    return validate.pick(_NAMES, number, field)


def number_of(name: str) -> pb.Signal.ValueType:
    """CRI's number of a signal; SIGNAL_RUNTIME_DEFAULT for one that CRI does not have."""
    return _NUMBERS.get(name, pb.SIGNAL_RUNTIME_DEFAULT)
