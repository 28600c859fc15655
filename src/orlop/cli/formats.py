"""``--format`` of what lists and inspects: ``json``, a template, or a table made of one.

A small part of the templates that podman and docker have: ``{{.Field}}``, ``{{.Field.Below}}``,
``{{json .}}`` and ``{{json .Field}}``, with ``\\t`` and ``\\n`` in the text around them. All else is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from orlop.cli import output
from orlop.cli.problems import CliError
from orlop.cli.units import show_age, show_size

Row = Mapping[str, Any]
"""Texts, numbers, lists and maps by the names of fields."""

SHORT = 13
"""Letters of an id that people see."""
WIDEST = 48
"""Letters of a column of the usual tables."""

_ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_WORDS = re.compile(r"\s*(json\s+)?\.((?:[A-Za-z_][\w-]*)?(?:\.[A-Za-z_][\w-]*)*)\s*")
_ESCAPES = {r"\t": "\t", r"\n": "\n"}


class Bytes(int):
    """Bytes: a number for programs, with a unit for people."""

    def __str__(self) -> str:
        return show_size(int(self))


class Age(int):
    """Seconds since 1970: a number for programs, how long ago for people."""

    def __str__(self) -> str:
        return show_age(int(self) * 1_000_000_000)


class Id(str):
    """An id, of which people see the beginning."""

    __slots__ = ()


def moment(nanoseconds: int) -> str:
    """A time as RFC 3339 has it, "" for none."""
    if nanoseconds <= 0:
        return ""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="seconds")


class Shape(NamedTuple):
    """The fields of the rows of a list, with the headings of their columns; and those usually shown."""

    headings: Mapping[str, str]
    columns: tuple[str, ...]


class _Action(NamedTuple):
    path: tuple[str, ...]
    as_json: bool


_Parts = Sequence[str | _Action]


class TextTemplate:
    """What is between ``{{`` and ``}}`` in a text, understood. Raises CliError."""

    def __init__(self, text: str) -> None:
        pieces = _ACTION.split(text)
        self._parts: list[str | _Action] = [
            _action(piece) if number % 2 else _unescaped(piece) for number, piece in enumerate(pieces)
        ]
        if not self.actions or any("{{" in part for part in self._parts if isinstance(part, str)):
            raise CliError(f"--format {text}: write json, or a template such as '{{{{.ID}}}}'", exit_code=2)

    @property
    def actions(self) -> list[_Action]:
        """What is filled in, in its order."""
        return [part for part in self._parts if isinstance(part, _Action)]

    def fill(self, row: Row, *, whole: bool = True) -> str:
        """The text with the fields of ``row``; ids cut unless ``whole``. Raises CliError."""
        return _line(self._parts, row, whole=whole)

    def columns(self) -> list[_Parts]:
        """Its parts from tab to tab."""
        found: list[list[str | _Action]] = [[]]
        for part in self._parts:
            if isinstance(part, _Action):
                found[-1].append(part)
                continue
            first, *others = part.split("\t")
            found[-1].append(first)
            found += [[one] for one in others]
        return list(found)

    def check(self, fields: Collection[str]) -> None:
        """Raise CliError for a field that is none of these."""
        for one in self.actions:
            if one.path and one.path[0] not in fields:
                raise _no_field(".".join(one.path), fields)


def _line(parts: _Parts, row: Row, *, whole: bool) -> str:
    return "".join(part if isinstance(part, str) else _filled(part, row, whole=whole) for part in parts)


def _headed(parts: _Parts, headings: Mapping[str, str]) -> str:
    # What stands between the fields of a column stands between their headings, too.
    names = (part if isinstance(part, str) else headings.get("".join(part.path[:1]), "") for part in parts)
    return "".join(names)


def _action(text: str) -> _Action:
    match = _WORDS.fullmatch(text)
    if match is None or (not match[2] and not match[1]):
        raise CliError(
            f"--format understands {{{{.Field}}}}, {{{{json .Field}}}} and {{{{json .}}}}, "
            f"not {{{{{text}}}}}",
            exit_code=2,
        )
    return _Action(tuple(part for part in match[2].split(".") if part), bool(match[1]))


def _unescaped(text: str) -> str:
    return re.sub(r"\\[tn]", lambda match: _ESCAPES[match[0]], text)


def _filled(action: _Action, row: Row, *, whole: bool) -> str:
    value: Any = row
    for number, name in enumerate(action.path):
        if not isinstance(value, Mapping) or name not in value:
            above = ".".join(action.path[:number])
            names = list(value) if isinstance(value, Mapping) else []
            raise _no_field(".".join(action.path), [f"{above}.{one}".lstrip(".") for one in names])
        value = value[name]
    if action.as_json:
        return json.dumps(value, ensure_ascii=False)
    return shown(value, whole=whole)


def _no_field(name: str, fields: Collection[str]) -> CliError:
    there = f"there are {', '.join(fields)}" if fields else "it has none below"
    return CliError(f"--format: there is no field {name}: {there}", exit_code=2)


def shown(value: Any, *, whole: bool = True) -> str:
    """A value in a template or a column."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return ""
    if isinstance(value, Id) and not whole:
        return value.removeprefix("sha256:")[:SHORT]
    if isinstance(value, Mapping):
        return ",".join(f"{key}={shown(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ",".join(shown(one) for one in value)
    return str(value)


class Printer:
    """Prints the rows of a list as ``--format`` says, "" for the usual table."""

    def __init__(self, shape: Shape, text: str = "", *, whole: bool = False) -> None:
        self._shape = shape
        self._whole = whole
        self._json = text == "json"
        as_table, _, rest = text.partition(" ")
        self._table = not text or text == "table" or (as_table == "table" and "{{" in rest)
        self._template: TextTemplate | None = None
        if self._table and rest.strip():
            self._template = TextTemplate(rest.strip())
        elif not self._table and not self._json:
            self._template = TextTemplate(text)
        if self._template is not None:
            self._template.check(shape.headings)

    @property
    def fields(self) -> frozenset[str]:
        """What rows must have: some fields cost a question each."""
        if self._json:
            return frozenset(self._shape.headings)
        if self._template is None:
            return frozenset(self._shape.columns)
        actions = self._template.actions
        if any(not one.path for one in actions):
            return frozenset(self._shape.headings)
        return frozenset(one.path[0] for one in actions)

    def show(self, rows: Sequence[Row]) -> None:
        """Print them. Raises CliError for a field below one that has none."""
        if self._json:
            output.print_json([{name: row[name] for name in self._shape.headings} for row in rows])
        elif self._table:
            self._show_table(rows)
        elif self._template is not None:
            for row in rows:
                print(self._template.fill(row, whole=self._whole))

    def _show_table(self, rows: Iterable[Row]) -> None:
        headings = self._shape.headings
        if self._template is None:
            columns = self._shape.columns
            lines = [[self._cell(row[name]) for name in columns] for row in rows]
            output.table([headings[name] for name in columns], lines)
            return
        columns_of = self._template.columns()
        head = [_headed(column, headings) for column in columns_of]
        output.table(head, [[_line(column, row, whole=self._whole) for column in columns_of] for row in rows])

    def _cell(self, value: Any) -> str:
        text = shown(value, whole=self._whole) or "-"
        return text if self._whole or len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."


def show_documents(text: str, documents: Sequence[Row]) -> None:
    """Print what `inspect` knows: all of it as one list for ``json``, else a line for each.

    Raises CliError for a field that there is not.
    """
    if text == "json":
        output.print_json(list(documents))
        return
    template = TextTemplate(text)
    for line in [template.fill(one) for one in documents]:
        print(line)


def show_document(text: str, document: Row) -> None:
    """The same for what there is one of: an object for ``json``."""
    if text == "json":
        output.print_json(document)
    else:
        print(TextTemplate(text).fill(document))


def check(text: str) -> None:
    """Raise CliError for what :func:`show_documents` could not understand."""
    if text not in ("", "json"):
        TextTemplate(text)
