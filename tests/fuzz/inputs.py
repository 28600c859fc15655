"""Inputs near a target's seeds, for hypothesis: a seed with a few edits, cut and joined as bytes go wrong."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"{",
    b"[",
    b'"',
    b"\\u0000",
    b"-1",
    b"9" * 20,
    b"\n",
    b"/",
    b"..",
)
MOST = 1 << 16

Edit = tuple[str, float, float, bytes]


def edited(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Any bytes, or a seed with up to a dozen edits."""
    places = st.floats(0, 1, exclude_max=True)
    new = st.one_of(st.sampled_from(INTERESTING), st.binary(max_size=9), st.sampled_from(seeds))
    edits = st.tuples(
        st.sampled_from(("replace", "insert", "remove", "repeat", "flip", "cut", "raise")),
        places,
        places,
        new,
    )
    near = st.builds(_edit, st.sampled_from(seeds), st.lists(edits, max_size=12))
    return st.one_of(near, near, near, st.binary(max_size=200))


def _edit(data: bytes, edits: list[Edit]) -> bytes:
    for what, where, until, new in edits:
        start = int(where * (len(data) + 1))
        end = start + int(until * until * (len(data) - start + 1))
        piece = data[start:end]
        match what:
            case "replace":
                data = data[:start] + new + data[start + len(new) :]
            case "insert":
                data = data[:start] + new + data[start:]
            case "remove":
                data = data[:start] + data[end:]
            case "repeat":
                data = data[:start] + piece * (1 + len(new)) + data[end:]
            case "flip":
                data = (
                    data[:start] + bytes(byte ^ 1 << int(where * 8) for byte in piece[:1]) + data[start + 1 :]
                )
            case "cut":
                data = data[:start]
            case "raise":
                data = data[:start] + bytes((byte + 1) % 256 for byte in piece[:2]) + data[start + 2 :]
        data = data[:MOST]
    return data
