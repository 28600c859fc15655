"""What the text of a registry's error is taken for."""

from __future__ import annotations

import json
import time

import pytest

from orlop.errors import NotFound, OrlopError, Unavailable
from orlop.images import failures
from orlop.images.layers import _said


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("reading manifest latest in a: manifest unknown", NotFound),
        ("status 404 (Not Found)", NotFound),
        ("dial tcp: lookup h: no such host", Unavailable),
        ("", Unavailable),
        ("4", Unavailable),
        ("1404", Unavailable),
    ],
)
def test_words_have_a_meaning_and_everything_else_has_one_too(message: str, kind: type[OrlopError]) -> None:
    assert isinstance(failures.failure("example.com/a:1", message), kind)


def test_names_say_nothing_about_what_went_wrong() -> None:
    for name in ("https://h.example/401", "signature.example.com/denied", "h-404:5000", "[fd00::403]:404"):
        assert isinstance(failures.failure("a", f"pinging {name} failed"), Unavailable), name


@pytest.mark.parametrize("word", ["a", "a.", "a:", "[1:", "1:", "-", "a-"])
def test_a_long_message_takes_no_time(word: str) -> None:
    """A registry chooses its words; they are looked at where everybody waits."""
    begun = time.process_time()
    failures.failure("a", word * (100_000 // len(word)))
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"3", b'"x"', b'{"read": ', b"\xff", b"[" * 5000, json.dumps({"read": 1}).encode()]
)
def test_what_a_conversion_says_is_an_object_or_nothing(line: bytes) -> None:
    assert _said(line) in ({}, {"read": 1})
