"""Tables of packet filters: text for nft(8) that stands, and sets whose elements come and go.

What pods' coming and going, and nothing else, changes are elements; :func:`changes` says which. Whatever else
differs, the tables are replaced as a whole in one transaction: there is no moment with half of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orlop.linux import nftables
from orlop.linux.nftables import ElementChange
from orlop.value import Value

Words = tuple[str, ...]


class ElementSet(Value, frozen=True):
    """A set of a table or, if ``to`` names types, a map.

    An element is as many words as ``types`` and ``to`` have names of nft's types together, among those that
    :func:`orlop.linux.nftables.packed` knows; ``"``, and what else nft wants around them, is left out.
    """

    name: str
    types: Words
    to: Words = ()
    elements: frozenset[Words] = frozenset()

    def text(self, *, filled: bool = True) -> str:
        """Its declaration in nft's words, with its elements or without. Raises ValueError."""
        kind, types = "set", " . ".join(self.types)
        if self.to:
            kind, types = "map", f"{types} : {' . '.join(self.to)}"
        members = ", ".join(self._element(one) for one in sorted(self.elements)) if filled else ""
        body = f"    elements = {{ {members} }}\n" if members else ""
        return f"  {kind} {self.name} {{\n    type {types}\n{body}  }}\n"

    def _element(self, words: Words) -> str:
        kinds = (*self.types, *self.to)
        nftables.packed(kinds, words)  # what is no address must not become nft's words
        said = [f'"{word}"' if kind == "ifname" else word for kind, word in zip(kinds, words, strict=True)]
        key, value = " . ".join(said[: len(self.types)]), " . ".join(said[len(self.types) :])
        return f"{key} : {value}" if value else key


class Table(Value, frozen=True):
    """A table of a family: ``body`` has its chains, and those of its sets that change seldom."""

    family: str
    name: str
    body: str
    sets: tuple[ElementSet, ...] = ()

    def text(self, *, filled: bool = True) -> str:
        """What makes nft put it in the place of one of that name, with its elements or without."""
        sets = "".join(one.text(filled=filled) for one in self.sets)
        where = f"{self.family} {self.name}"
        return f"table {where}\ndelete table {where}\ntable {where} {{\n{sets}{self.body}}}\n"


def text(wanted: Sequence[Table]) -> str:
    """What makes nft put all of them in place, in one transaction. Raises ValueError."""
    return "".join(one.text() for one in wanted)


def changes(former: Sequence[Table], wanted: Sequence[Table]) -> list[ElementChange] | None:
    """What makes ``former`` into ``wanted``; None when that is more than elements."""
    if [one.text(filled=False) for one in former] != [one.text(filled=False) for one in wanted]:
        return None
    pairs = zip(former, wanted, strict=True)
    return [found for one, other in pairs for found in _of_table(one, other)]


def _of_table(former: Table, wanted: Table) -> Iterator[ElementChange]:
    for one, other in zip(former.sets, wanted.sets, strict=True):
        for words in one.elements ^ other.elements:
            split = len(one.types)
            yield ElementChange(
                family=wanted.family,
                table=wanted.name,
                set=one.name,
                key=nftables.packed(one.types, words[:split]),
                value=nftables.packed(one.to, words[split:]) if one.to else b"",
                there=words in other.elements,
            )
