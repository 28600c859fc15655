from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.cri.streaming.spdy import (
    DICTIONARY,
    MAX_FRAME,
    Data,
    FrameParser,
    FrameWriter,
    GoAway,
    Headers,
    PingFrame,
    Reset,
    ResetStatus,
    SpdyError,
    SynStream,
)

names = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=20)
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=100)


def test_dictionary_is_the_one_of_the_draft() -> None:
    assert len(DICTIONARY) == 1423
    assert DICTIONARY.startswith(b"\x00\x00\x00\x07options\x00\x00\x00\x04head")
    assert DICTIONARY.endswith(b"utf-,*,enq=0.")


@given(st.lists(st.dictionaries(names, values, max_size=5), min_size=1, max_size=5), st.integers(1, 40))
def test_headers_survive_the_shared_compression_in_any_pieces(
    blocks: list[dict[str, str]], step: int
) -> None:
    writer, parser = FrameWriter(), FrameParser()
    sent = b"".join(writer.syn_stream(2 * n + 1, block) for n, block in enumerate(blocks))
    found = [f for start in range(0, len(sent), step) for f in parser.feed(sent[start : start + step])]
    assert found == [SynStream(2 * n + 1, block, False) for n, block in enumerate(blocks)]


def test_every_frame_is_understood() -> None:
    writer = FrameWriter()
    sent = (
        writer.syn_reply(1)
        + writer.data(1, b"abc")
        + writer.data(1, b"", fin=True)
        + writer.reset(3, ResetStatus.CANCEL)
        + writer.ping(5)
        + writer.go_away(3)
    )
    assert FrameParser().feed(sent) == [
        Headers(1, {}, False),
        Data(1, b"abc", False),
        Data(1, b"", True),
        Reset(3, ResetStatus.CANCEL),
        PingFrame(5),
        GoAway(3),
    ]


@given(st.binary(max_size=2000))
def test_any_bytes_give_frames_or_one_error(data: bytes) -> None:
    with contextlib.suppress(SpdyError):
        FrameParser().feed(data)


def test_a_frame_that_claims_too_much_is_refused_before_it_arrives() -> None:
    with pytest.raises(SpdyError, match="larger"):
        FrameParser().feed((1).to_bytes(4, "big") + (MAX_FRAME + 1).to_bytes(4, "big"))


def test_a_header_bomb_is_refused() -> None:
    bomb = FrameWriter().syn_stream(1, {"a": "x" * 1_000_000})
    with pytest.raises(SpdyError, match="header block"):
        FrameParser().feed(bomb)


def test_another_version_is_refused() -> None:
    with pytest.raises(SpdyError, match="version 2"):
        FrameParser().feed(b"\x80\x02\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01")
