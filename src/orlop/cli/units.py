"""What people write and read: sizes, times, ports, volumes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from orlop.cli.problems import CliError
from orlop.cri.api import runtime_v1_pb2 as pb

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DIGITS = 20
_PROTOCOLS = {"tcp": pb.TCP, "udp": pb.UDP, "sctp": pb.SCTP}


def parse_size(text: str) -> int:
    """``512m``, ``1.5g``, ``1048576`` in bytes; units are powers of 1024."""
    match = _SIZE.match(text.strip())
    if match is None or len(match[1]) > _DIGITS:
        raise CliError(f"{text} is not a size: write for example 512m or 2g", exit_code=2)
    return int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])


def show_size(size: int) -> str:
    """Bytes for people."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def show_age(then_ns: int) -> str:
    """How long ago that was."""
    if then_ns <= 0:
        return "-"
    seconds = max(0, int(time.time() - then_ns / 1e9))
    for limit, unit, divisor in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds // divisor} {unit} ago"
    return f"{seconds // 86400} days ago"


def _port(text: str, whole: str, lowest: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6) or not lowest <= int(text) <= 65535:
        raise CliError(f"{whole}: {text or 'nothing'} is not a port number", exit_code=2)
    return int(text)


def _text(part: str, whole: str) -> str:
    """What a request can carry: an argument may be any bytes, CRI's texts are UTF-8."""
    try:
        part.encode()
    except UnicodeEncodeError:
        raise CliError(f"{whole!a}: {part!a} is not UTF-8", exit_code=2) from None
    return part


def parse_port(text: str) -> pb.PortMapping:
    """``[HOSTIP:]HOSTPORT:PORT[/tcp|udp|sctp]``."""
    where, _, protocol = text.partition("/")
    if (protocol or "tcp").lower() not in _PROTOCOLS:
        raise CliError(f"{text}: the protocol is tcp, udp or sctp, not {protocol}", exit_code=2)
    left, colon, inside = where.rpartition(":")
    if not colon:
        raise CliError(f"{text}: write -p HOSTPORT:PORT, for example 8080:80", exit_code=2)
    address, _, outside = left.rpartition(":")
    return pb.PortMapping(
        protocol=_PROTOCOLS[(protocol or "tcp").lower()],
        container_port=_port(inside, text, 1),
        host_port=_port(outside, text, 1),
        host_ip=_text(address.strip("[]"), text),
    )


def parse_volume(text: str) -> pb.Mount:
    """``HOST:CONTAINER[:ro|rw]``; a relative host path counts from here."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0] or not parts[1].startswith("/"):
        raise CliError(f"{text}: write -v HOSTPATH:/PATH/INSIDE, with :ro to forbid writing", exit_code=2)
    mode = parts[2] if len(parts) == 3 else "rw"
    if mode not in ("ro", "rw"):
        raise CliError(f"{text}: the mode is ro or rw, not {mode}", exit_code=2)
    try:
        host = Path(parts[0]).expanduser().absolute()
        there = host.exists()
    except (RuntimeError, OSError) as error:  # no such user, a name that is too long
        raise CliError(f"{text}: {parts[0]}: {error}") from error
    if not there:
        raise CliError(f"{text}: {host} does not exist on this machine")
    inside, outside = _text(parts[1], text), _text(os.fspath(host), text)
    return pb.Mount(container_path=inside, host_path=outside, readonly=mode == "ro")


def parse_environment(text: str) -> pb.KeyValue:
    """``KEY=VALUE``, or ``KEY`` for the value it has here."""
    key, sign, value = text.partition("=")
    if not key:
        raise CliError(f"{text}: write -e KEY=VALUE", exit_code=2)
    return pb.KeyValue(key=_text(key, text), value=os.fsencode(value if sign else os.environ.get(key, "")))


def environment(texts: Iterable[str], *, tty: bool) -> tuple[pb.KeyValue, ...]:
    """What ``-e`` says, and with a terminal of what kind that is."""
    own = (f"TERM={os.environ.get('TERM', 'xterm')}",) if tty else ()
    return tuple(parse_environment(text) for text in (*own, *texts))
