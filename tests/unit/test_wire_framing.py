"""The frame parser against a pipe that may be cut and garbled anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.wire.framing import (
    HEADER,
    MAGIC,
    MAX_DATA,
    MAX_MESSAGE,
    Frame,
    Kind,
    Parser,
    ProtocolError,
    data_frames,
    frame,
    preamble,
)

NONCE = b"a" * 16
OTHER = b"0" * 16


def in_step() -> Parser:
    parser = Parser()
    assert parser.feed(preamble(NONCE)) == [Frame(Kind.SYNC, 0, NONCE)]
    return parser


def chunks(data: bytes, sizes: list[int]) -> list[bytes]:
    out = []
    for size in sizes:
        out.append(data[:size])
        data = data[size:]
    return [*out, data]


messages = st.builds(
    lambda kind, stream, payload: (kind, stream, payload.encode()),
    st.sampled_from([Kind.HELLO, Kind.REQUEST, Kind.REPLY, Kind.EVENT]),
    st.integers(0, (1 << 24) - 1),
    st.text("abc{}:,", max_size=200),
)


@given(st.lists(messages, max_size=8), st.lists(st.integers(0, 60), max_size=20))
def test_frames_survive_any_chunking(sent: list[tuple[Kind, int, bytes]], sizes: list[int]) -> None:
    parser = in_step()
    stream = b"".join(frame(kind, number, payload) for kind, number, payload in sent)
    got = [f for chunk in chunks(stream, sizes) for f in parser.feed(chunk)]
    assert [(f.kind, f.stream, f.payload) for f in got] == sent


hostile = st.lists(
    st.one_of(st.binary(max_size=40), st.just(MAGIC), st.just(MAGIC[:7]), st.just(MAGIC[7:])), max_size=8
).map(b"".join)


@given(hostile, st.integers(1, 1 << 40), st.lists(st.integers(0, 50), max_size=20))
def test_data_may_hold_the_magic(data: bytes, offset: int, sizes: list[int]) -> None:
    parser = in_step()
    encoded = b"".join(data_frames(7, offset, data))
    assert MAGIC not in encoded
    got = [f for chunk in chunks(encoded, sizes) for f in parser.feed(chunk)]
    assert b"".join(f.payload for f in got) == data
    position = offset
    for item in got:
        assert (item.kind, item.stream, item.offset) == (Kind.DATA, 7, position)
        position += len(item.payload)


@given(hostile, st.data())
def test_a_preamble_after_half_a_frame_brings_it_back_in_step(data: bytes, draw: st.DataObject) -> None:
    old = (
        frame(Kind.REQUEST, 3, b"{}") + b"".join(data_frames(9, 5, data)) + frame(Kind.REQUEST, 4, b"x" * 99)
    )
    cut = draw.draw(st.integers(0, len(old)))
    new = preamble(OTHER) + frame(Kind.HELLO, 0, b"{}")
    sizes = draw.draw(st.lists(st.integers(0, 40), max_size=30))
    parser = in_step()
    got: list[Frame] = []
    for chunk in chunks(old[:cut] + new, sizes):
        try:
            got += parser.feed(chunk)
        except ProtocolError:
            assert not parser.in_step
    assert got[-2:] == [Frame(Kind.SYNC, 0, OTHER), Frame(Kind.HELLO, 0, b"{}")]


@given(st.lists(st.binary(max_size=64), max_size=20))
def test_noise_never_yields_a_frame_nor_grows_without_bound(noise: list[bytes]) -> None:
    parser = Parser()
    for chunk in noise:
        if MAGIC not in chunk:
            parser.feed(chunk)
    assert len(parser._buffer) <= 64 + len(MAGIC)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_garbage_in_step_raises_or_waits(garbage: bytes) -> None:
    parser = in_step()
    try:
        for item in parser.feed(garbage):
            assert item.stream < 1 << 24
    except ProtocolError:
        assert not parser.in_step
    assert parser.feed(preamble(OTHER))[-1] == Frame(Kind.SYNC, 0, OTHER)


@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(MAX_MESSAGE + 1, 0, 1, Kind.REQUEST, b"\0\0\0"),
        HEADER.pack(MAX_DATA + 1, 0, 1, Kind.DATA, b"\0\0\0"),
        HEADER.pack(0, 0, 1, Kind.DATA, b"\0\0\0"),
        HEADER.pack(1, 0, 1, Kind.ACK, b"\0\0\0"),
        HEADER.pack(1, 0, 1, 99, b"\0\0\0"),
        HEADER.pack(1, 0, 1, 0, b"\0\0\0"),
        HEADER.pack(1, 0, 1 << 24, Kind.REQUEST, b"\0\0\0"),
        HEADER.pack(1, 0, 0, Kind.DATA, b"\0\0\0"),
        HEADER.pack(1, 5, 1, Kind.REQUEST, b"\0\0\0"),
        HEADER.pack(1, 1 << 57, 1, Kind.DATA, b"\0\0\0"),
        HEADER.pack(1, 0, 1, Kind.REQUEST, b"\0x\0"),
    ],
)
def test_headers_out_of_bounds(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        in_step().feed(header)


def test_only_the_answer_to_our_own_nonce_counts() -> None:
    parser = Parser(OTHER)
    stale = preamble(NONCE) + frame(Kind.EVENT, 0, b"{}")
    assert parser.feed(stale) == []
    assert parser.feed(stale + preamble(OTHER) + frame(Kind.HELLO)) == [
        Frame(Kind.SYNC, 0, OTHER),
        Frame(Kind.HELLO),
    ]


def test_encoding_out_of_bounds_is_refused() -> None:
    with pytest.raises(ValueError):
        frame(Kind.REQUEST, 1, bytes(MAX_MESSAGE + 1))
    with pytest.raises(ValueError):
        frame(Kind.ACK, 1 << 24)
    with pytest.raises(ValueError):
        preamble(b"short")
    with pytest.raises(ValueError):
        preamble(b"not hexadecimal!")


@given(
    st.lists(messages, max_size=12),
    st.lists(st.integers(0, 60), max_size=20),
    st.integers(1, 5),
    st.booleans(),
)
def test_frames_come_as_many_at_a_time_as_asked_for(
    sent: list[tuple[Kind, int, bytes]], sizes: list[int], most: int, again: bool
) -> None:
    parser = in_step()
    stream = b"".join(frame(kind, number, payload) for kind, number, payload in sent)
    if again:
        stream = preamble(NONCE).join((stream, stream))
    got = []
    for chunk in chunks(stream, sizes):
        found = parser.feed(chunk, most)
        while found:
            assert len(found) <= most
            got += found
            found = parser.feed(b"", most)
    assert [(f.kind, f.stream, f.payload) for f in got if f.kind is not Kind.SYNC] == sent * (1 + again)
