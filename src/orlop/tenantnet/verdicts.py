"""What a packet filter of ours does with a packet, read from the very text that nft(8) is given.

This is the part of nft's language that :mod:`orlop.tenantnet.rules` writes, and no more: what is new there
has to be made known here, and is an error until then. So what ``orlop tenants trace`` says cannot differ
from what nodes do. A guard's drop is noted, and the packet goes on as if that guard were not there: so all
guards in its way are found, the first of which is the one that it meets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Final

import msgspec

from orlop.errors import Internal
from orlop.value import Value

IP, ARP = "ip", "arp"

_TOKEN: Final = re.compile(r'"[^"]*"|[{},;\n]|[^\s{},;"]+')
_PRIORITIES: Final = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}


class Packet(Value, frozen=True):
    """The first packet of a connection, where it is just now.

    ``kind`` is what a frame carries: ip, arp, or anything else. ``mac`` is the frame's sender, ``claims``
    what ARP says: a MAC and an address. ``reverse`` is whether its source is behind the link it came from.
    ``mark`` is its own, ``connection`` that of its connection.
    """

    source: str = "0.0.0.0"
    destination: str = "0.0.0.0"
    protocol: str = "udp"
    port: int = 0
    kind: str = IP
    mac: str = ""
    claims: tuple[str, str] = ("", "")
    came: str = ""
    leaves: str = ""
    reverse: bool = True
    translated: bool = False
    mark: int = 0
    connection: int = 0


class MetRule(Value, frozen=True):
    """A rule that did something: ``guard`` dropped it, or it was translated."""

    rule: str
    guard: str = ""
    change: str = ""


_STOPS: Final = ("drop", "reject")
_Read = Callable[[Packet], str | None]
_FIELDS: Final[Mapping[tuple[str, ...], _Read]] = {
    ("iifname",): lambda one: one.came,
    ("oifname",): lambda one: one.leaves,
    ("ether", "type"): lambda one: one.kind,
    ("ether", "saddr"): lambda one: one.mac,
    ("arp", "saddr", "ether"): lambda one: one.claims[0] if one.kind == ARP else None,
    ("arp", "saddr", "ip"): lambda one: one.claims[1] if one.kind == ARP else None,
    ("ip", "saddr"): lambda one: one.source if one.kind == IP else None,
    ("ip", "daddr"): lambda one: one.destination if one.kind == IP else None,
    ("ip", "protocol"): lambda one: one.protocol,
    ("meta", "l4proto"): lambda one: one.protocol,
    ("meta", "nfproto"): lambda one: "ipv4" if one.kind == IP else one.kind,
    ("icmp", "type"): lambda one: "echo-request" if one.protocol == "icmp" else None,
    ("ct", "state"): lambda one: "new",
    ("ct", "status"): lambda one: "dnat" if one.translated else "",
    ("ct", "mark"): lambda one: str(one.connection),
    ("meta", "mark"): lambda one: str(one.mark),
    ("fib", "saddr", ".", "iif", "oif"): lambda one: "exists" if one.reverse else "missing",
    ("tcp", "dport"): lambda one: str(one.port) if one.protocol == "tcp" else None,
    ("udp", "dport"): lambda one: str(one.port) if one.protocol == "udp" else None,
    ("th", "dport"): lambda one: str(one.port) if one.protocol in ("tcp", "udp") else None,
}

_Key = tuple[str, ...]


class _Elements:
    """A set or a map: what is in it exactly, and what by ranges."""

    def __init__(self, pairs: Sequence[tuple[_Key, _Key]] = ()) -> None:
        self._exact = {key: value for key, value in pairs if not any(map(_is_range, key))}
        self._ranges = [(key, value) for key, value in pairs if any(map(_is_range, key))]

    def find(self, key: _Key) -> _Key | None:
        """What is there under a key: () in a set; None if it is not there."""
        if key in self._exact:
            return self._exact[key]
        return next((value for one, value in self._ranges if _within(key, one)), None)


def _is_range(text: str) -> bool:
    return "/" in text or text.endswith("*")


def _within(key: _Key, pattern: _Key) -> bool:
    return len(key) == len(pattern) and all(map(_covers, pattern, key))


def _covers(pattern: str, value: str) -> bool:
    if "/" in pattern:
        return IPv4Address(value) in IPv4Network(pattern)
    return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern


@dataclass
class _Chain:
    name: str
    rules: list[list[str]] = field(default_factory=list)
    kind: str = ""
    hook: str = ""
    priority: int = 0


@dataclass
class _Table:
    sets: dict[str, _Elements] = field(default_factory=dict)
    chains: dict[str, _Chain] = field(default_factory=dict)


class PacketFilter:
    """The tables of one network namespace. Raises Internal for a text that is not understood."""

    def __init__(self, text: str) -> None:
        self._tables: dict[tuple[str, str], _Table] = {}
        words = _TOKEN.findall(text)
        place = 0
        while place < len(words):
            place = self._command(words, place)

    def _command(self, words: list[str], place: int) -> int:
        end = _end_of_line(words, place)
        match words[place:end]:
            case ["\n" | ";"] | []:
                return place + 1
            case ["table", family, name]:
                self._tables.setdefault((family, name), _Table())
                return end
            case ["delete", "table", family, name]:
                self._tables.pop((family, name), None)
                return end
            case ["table", family, name, "{"]:
                table = self._tables.setdefault((family, name), _Table())
                return _fill(table, words, end)
        raise _unknown(words[place:end])

    @property
    def guards(self) -> frozenset[str]:
        """The names of all guards."""
        return frozenset(
            rule[rule.index(word) + 2].strip('"')
            for table in self._tables.values()
            for chain in table.chains.values()
            for rule in chain.rules
            for word in _STOPS
            if word in rule
        )

    def passes(self, families: Sequence[str], hook: str, packet: Packet) -> tuple[Packet, list[MetRule]]:
        """Lead a packet through all chains at a hook: what it is then, and what it met."""
        found = [
            (chain.priority, table, chain)
            for (family, _), table in self._tables.items()
            for chain in table.chains.values()
            if family in families and chain.hook == hook
        ]
        met: list[MetRule] = []
        translated = False
        for _, table, chain in sorted(found, key=lambda one: one[0]):
            if chain.kind == "nat" and translated:
                continue
            run = _Run(table, packet)
            for one in run.chain(chain):
                met.append(one)
                translated = translated or bool(one.change)
            packet = run.packet
        return packet, met


def _end_of_line(words: Sequence[str], place: int) -> int:
    """The end of a command or statement: a line, or what a brace opens."""
    while place < len(words) and words[place] not in ("\n", ";"):
        place += 1
        if words[place - 1] == "{":
            return place
    return place


def _block(words: Sequence[str], place: int) -> tuple[list[str], int]:
    """The words up to the brace that closes, and the place after it."""
    depth, begin = 1, place
    while depth:
        depth += {"{": 1, "}": -1}.get(words[place], 0)
        place += 1
    return list(words[begin : place - 1]), place


def _fill(table: _Table, words: list[str], place: int) -> int:
    body, after = _block(words, place)
    at = 0
    while at < len(body):
        if body[at] in ("\n", ";"):
            at += 1
            continue
        kind, name = body[at], body[at + 1]
        inner, at = _block(body, at + 3)
        if kind in ("set", "map"):
            table.sets[name] = _Elements(_elements_of(inner))
        elif kind == "chain":
            table.chains[name] = _chain_of(name, inner)
        else:
            raise _unknown([kind, name])
    return after


def _elements_of(body: list[str]) -> list[tuple[_Key, _Key]]:
    if "elements" not in body:
        return []
    inner, _ = _block(body, body.index("elements") + 3)
    return _pairs(inner)


def _pairs(words: Sequence[str]) -> list[tuple[_Key, _Key]]:
    return [_pair(one) for one in _split([word for word in words if word != "\n"], ",") if one]


def _pair(words: Sequence[str]) -> tuple[_Key, _Key]:
    key, *value = _split(words, ":")
    return _key(key), _key(value[0]) if value else ()


def _key(words: Sequence[str]) -> _Key:
    return tuple(word.strip('"') for word in words if word != ".")


def _split(words: Sequence[str], at: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == at:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _chain_of(name: str, body: list[str]) -> _Chain:
    chain = _Chain(name)
    for line in _lines(body):
        match line:
            case ["type", kind, "hook", hook, "priority", priority]:
                chain.kind, chain.hook = kind, hook
                chain.priority = _PRIORITIES[priority] if priority in _PRIORITIES else int(priority)
            case _:
                chain.rules.append(line)
    return chain


def _lines(body: Sequence[str]) -> Iterator[list[str]]:
    line: list[str] = []
    depth = 0
    for word in body:
        depth += {"{": 1, "}": -1}.get(word, 0)
        if word in ("\n", ";") and not depth:
            if line:
                yield line
            line = []
        elif word != "\n":
            line.append(word)
    if line:
        yield line


def _unknown(words: Sequence[str]) -> Internal:
    return Internal(f"this version's trace cannot read its own rule {' '.join(words)!r}")


class _Run:
    """One packet in the chains of one table."""

    def __init__(self, table: _Table, packet: Packet) -> None:
        self._table, self.packet = table, packet
        self._decided = False

    def chain(self, chain: _Chain) -> Iterator[MetRule]:
        """What it meets there; ``packet`` is what becomes of it meanwhile."""
        for rule in chain.rules:
            reading = _RuleReading(self._table, self.packet, rule)
            if not reading.matches():
                continue
            self.packet = reading.packet
            if reading.guard:
                yield MetRule(rule=" ".join(rule), guard=reading.guard)
                continue
            if reading.change:
                yield MetRule(rule=" ".join(rule), change=reading.change)
            if reading.calls:
                yield from self.chain(self._table.chains[reading.calls])
            self._decided = self._decided or reading.ends
            if self._decided or reading.leaves:
                return


class _RuleReading:
    """One rule, read from left to right for one packet."""

    def __init__(self, table: _Table, packet: Packet, words: list[str]) -> None:
        self._table, self.packet, self._words = table, packet, words
        self._place = 0
        self.guard, self.change, self.calls = "", "", ""
        self.ends = self.leaves = False

    def matches(self) -> bool:
        """Whether all of it applies; then ``packet`` and the rest of what is public say what it does."""
        while self._place < len(self._words):
            match self._words[self._place :]:
                case ["counter" | "notrack", *_]:
                    self._place += 1
                case ["accept", *_]:
                    self._place, self.ends = self._place + 1, True
                case ["drop" | "reject", "comment", name, *_]:
                    self.guard = name.strip('"')
                    self._place += 3
                case ["comment", _, *_]:
                    self._place += 2
                case ["jump" | "goto" as word, name]:
                    self.calls, self.leaves = name, word == "goto"
                    self._place += 2
                case ["return"]:
                    self._place, self.leaves = self._place + 1, True
                case ["update" | "delete", _, "{", *_]:
                    # What is remembered of callers, of whom this one is the first.
                    inner, self._place = _block(self._words, self._place + 3)
                    if "limit" in inner:
                        return False
                case ["ct" | "meta" as whose, "mark", "set", *_]:
                    if not self._marks(whose):
                        return False
                case ["dnat" | "snat" | "masquerade" as word, *_]:
                    if not self._translates(word):
                        return False
                case _:
                    if not self._compares():
                        return False
        return True

    def _marks(self, whose: str) -> bool:
        self._place += 3
        match self._words[self._place :]:
            case ["numgen", "random", "mod", _, *_]:
                # Each number may be drawn: the packet stands for one that drew the first.
                self._place, value = self._place + 4, "0"
            case [number, *_] if number.isdecimal():
                self._place, value = self._place + 1, number
            case _:
                found = self._mapped()
                if found is None:
                    return False
                value = found[0]
        name = "connection" if whose == "ct" else "mark"
        self.packet = msgspec.structs.replace(self.packet, **{name: int(value)})
        return True

    def _mapped(self) -> _Key | None:
        """What a map has under an expression."""
        key = self._expression()
        if not self._at(("map",)):
            raise _unknown(self._words)
        self._place += 1
        elements = self._elements()
        return elements.find(key) if key is not None else None

    def _expression(self) -> _Key | None:
        """Fields of the packet, joined by dots. None when it has no such field."""
        values: list[str | None] = []
        while True:
            found = next((key for key in _FIELDS if self._at(key)), None)
            if found is None:
                raise _unknown(self._words)
            self._place += len(found)
            values.append(_FIELDS[found](self.packet))
            if not self._at(
                ("."),
            ):
                break
            self._place += 1
        return None if None in values else tuple(str(one) for one in values)

    def _at(self, words: Sequence[str]) -> bool:
        return tuple(self._words[self._place : self._place + len(words)]) == tuple(words)

    def _compares(self) -> bool:
        value = self._expression()
        if self._at(("and",)):
            mask = int(self._words[self._place + 1], 0)
            value = tuple(str(int(one) & mask) for one in value or ())
            self._place += 2
        wanted = not self._at(("!=",))
        self._place += not wanted or self._at(("==",))
        elements = self._elements()
        return value is not None and (elements.find(value) is not None) == wanted

    def _elements(self) -> _Elements:
        """What a field is compared with: a named set, a written one, or one or more values."""
        word = self._words[self._place]
        self._place += 1
        if word.startswith("@"):
            return self._table.sets[word[1:]]
        if word == "{":
            inner, self._place = _block(self._words, self._place)
            return _Elements(_pairs(inner))
        values = [word]
        while self._at((",",)):
            values.append(self._words[self._place + 1])
            self._place += 2
        return _Elements([((one.strip('"'),), ()) for one in values])

    def _target(self) -> _Key | None:
        """What an address becomes: one that is written there, or what a map says, which may be nothing."""
        word = self._words[self._place]
        if word[0].isdigit():
            self._place += 1
            return (word,)
        return self._mapped()

    def _translates(self, word: str) -> bool:
        self._place += 1
        if word == "masquerade":
            # The address is that of the link it leaves by, which whoever leads the packet knows.
            self.change, self.ends = word, True
            return True
        self._place += self._at(("ip",))
        if not self._at(("to",)):
            raise _unknown(self._words)
        self._place += 1
        target = self._target()
        if target is None:
            return False
        self.ends = True
        if word == "snat":
            self.packet = msgspec.structs.replace(self.packet, source=target[0])
        else:
            port = int(target[1]) if len(target) > 1 else self.packet.port
            self.packet = msgspec.structs.replace(
                self.packet, destination=target[0], port=port, translated=True
            )
        self.change = f"{word} to {':'.join(target)}"
        return True
