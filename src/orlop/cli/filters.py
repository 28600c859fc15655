"""``--filter KEY=VALUE`` of lists: a value of a key must match, and all keys; labels must all match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orlop.errors import InvalidArgument

Test = Callable[[Any, str], bool]
Filters = Mapping[str, list[str]]


def parse(texts: Iterable[str], keys: Iterable[str]) -> Filters:
    """The values by key. Raises InvalidArgument for a key that is none of ``keys``."""
    known = list(keys)
    found: dict[str, list[str]] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if key not in known:
            raise InvalidArgument(f"--filter {text}: there are {', '.join(known)}")
        if not sign:
            raise InvalidArgument(f"--filter {text}: write {key}=VALUE")
        found.setdefault(key, []).append(value)
    return found


def matches(one: Any, wanted: Filters, tests: Mapping[str, Test]) -> bool:
    """Whether ``one`` is wanted."""
    return all(
        (all if key == "label" else any)(tests[key](one, value) for value in values)
        for key, values in wanted.items()
    )


def labelled(labels: Mapping[str, str], text: str) -> bool:
    """Whether there is the label ``KEY``, or ``KEY=VALUE``."""
    key, sign, value = text.partition("=")
    return key in labels and (not sign or labels[key] == value)


def pattern(text: str) -> re.Pattern[str]:
    """A regular expression, as names are filtered by. Raises InvalidArgument."""
    try:
        return re.compile(text)
    except re.error as error:
        raise InvalidArgument(f"--filter: {text} is no regular expression: {error}") from error
