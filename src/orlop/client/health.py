"""Health checks: how they are asked for, and what is known of containers beyond CRI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orlop.client.calls import CriClient, NativeClient
from orlop.client.texts import parse_duration, utf8
from orlop.errors import InvalidArgument
from orlop.native.api import native_v1_pb2 as native

CHECK = "health.orlop.io/check"
"""Annotation of a container that the daemon reads, since CRI has no words for it: see docs/cri.md."""

_KINDS = ("CMD", "CMD-SHELL", "NONE")

Seconds = float | str


def wish(
    command: str | Sequence[str] = "",
    *,
    interval: Seconds | None = None,
    timeout: Seconds | None = None,
    start_period: Seconds | None = None,
    retries: int | None = None,
) -> str:
    """A health check as the annotation has it: what is not said is the image's, or the usual.

    ``command`` is one for a shell, or its words in a list, which may be JSON in a text; ``none`` is no check.
    Times are seconds or texts such as ``1m30s``; with an interval of 0, or ``disable``, nothing is
    checked unless somebody asks. Raises InvalidArgument.
    """
    times = {"timeout": timeout, "start_period": start_period}
    times["interval"] = 0.0 if interval == "disable" else interval
    found: dict[str, Any] = {
        name: _nanoseconds(name, value) for name, value in times.items() if value not in (None, "")
    }
    if test := _test(command):
        found["test"] = test
    if retries is not None:
        found["retries"] = retries
    return json.dumps(found)


def _nanoseconds(name: str, value: Seconds | None) -> int:
    seconds = parse_duration(value) if isinstance(value, str) else float(value or 0)
    if not (seconds >= 1 or (seconds == 0 and name != "timeout") or name == "start_period") or seconds < 0:
        raise InvalidArgument(f"health check: the {name} must be a second or more, not {value}")
    return round(seconds * 1e9)


def _test(command: str | Sequence[str]) -> list[str]:
    if not isinstance(command, str):
        return _kind_of([*command]) if command else []
    text = command.strip()
    if not text:
        return []
    if text.startswith("["):
        try:
            words = json.loads(text)
        except ValueError as error:
            raise InvalidArgument(f"{text}: this is no list of words in JSON: {error}") from error
        if not words or not all(isinstance(word, str) for word in words):
            raise InvalidArgument(f"{text}: write the words of a command, as JSON has them")
        return _kind_of(words)
    if text.upper() == "NONE":
        return ["NONE"]
    return ["CMD-SHELL", utf8(text, text)]


def _kind_of(words: list[str]) -> list[str]:
    return [utf8(word, word) for word in (words if words[0] in _KINDS else ["CMD", *words])]


class Condition(NamedTuple):
    """What CRI does not tell of a container. ``health`` is "" for one that nobody checks."""

    paused: bool = False
    health: str = ""


async def conditions(client: CriClient) -> Mapping[str, Condition]:
    """Of those containers that have one worth telling, by their ids."""
    async with NativeClient(client.path) as ours:
        answer = await ours.containers.list_conditions(native.ListConditionsRequest())
    return {one.container_id: Condition(one.paused, one.health) for one in answer.conditions}
