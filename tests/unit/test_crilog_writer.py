"""The CRI log: exact lines, pieces of long ones, resumption, and files that go away."""

from __future__ import annotations

import re
import resource
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.errors import FailedPrecondition
from orlop.sandbox.crilog import MAX_LINE, STDERR, STDOUT, CriLog, format_lines, settled_since, timestamp

LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) (.*)", re.DOTALL)


def parse(text: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """(stream, tag, content) of each line."""
    assert text == b"" or text.endswith(b"\n")
    parsed = []
    for line in text.split(b"\n")[:-1]:
        match = LINE.fullmatch(line)
        assert match, line[:100]
        parsed.append((match[2], match[3], match[4]))
    return parsed


def joined(text: bytes, stream: bytes) -> bytes:
    """What a reader such as kubelet makes of one stream."""
    return b"".join(c if tag == b"P" else c + b"\n" for name, tag, c in parse(text) if name == stream)


def test_timestamp_has_nine_digits() -> None:
    assert timestamp(0) == b"1970-01-01T00:00:00.000000000Z"
    assert timestamp(1_700_000_000_000_000_042) == b"2023-11-14T22:13:20.000000042Z"


async def test_lines_of_both_streams(tmp_path: Path) -> None:
    path = tmp_path / "pod" / "c" / "0.log"
    log = CriLog(str(path))
    await log.open()
    assert await log.write(STDOUT, b"one\ntwo") == 4
    assert await log.write(STDERR, b"oops\n") == 5
    assert await log.write(STDOUT, b" and more\n\n") == 18
    assert await log.write(STDOUT, b"tail") == 18
    assert await log.end(STDOUT) == 22
    await log.close()
    assert parse(path.read_bytes()) == [
        (b"stdout", b"F", b"one"),
        (b"stderr", b"F", b"oops"),
        (b"stdout", b"F", b"two and more"),
        (b"stdout", b"F", b""),
        (b"stdout", b"P", b"tail"),
    ]


@pytest.mark.parametrize("size", [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE, 2 * MAX_LINE + 7])
@pytest.mark.parametrize("chunk", [1000, 40000, 1 << 20])
async def test_long_lines_go_out_in_pieces(tmp_path: Path, size: int, chunk: int) -> None:
    path = tmp_path / "0.log"
    log = CriLog(str(path))
    await log.open()
    data = b"x" * size + b"\n" + b"short\n"
    for start in range(0, len(data), chunk):
        await log.write(STDOUT, data[start : start + chunk])
    await log.close()
    lines = parse(path.read_bytes())
    assert lines[-1] == (b"stdout", b"F", b"short")
    assert [tag for _, tag, _ in lines[:-1]] == [b"P"] * (-(-size // MAX_LINE) - 1) + [b"F"]
    assert all(len(content) <= MAX_LINE for _, _, content in lines)
    assert joined(path.read_bytes(), b"stdout") == data


@given(
    st.lists(
        st.tuples(
            st.sampled_from([STDOUT, STDERR]),
            st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"\x00\xff", b"y" * 9000]), max_size=6).map(
                b"".join
            ),
        ),
        max_size=20,
    ),
    st.integers(0, 20),
)
@settings(max_examples=60)
async def test_nothing_is_lost_when_the_writer_dies(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, bytes]], death: int
) -> None:
    """A second writer that continues from the settled offsets completes the first one's file."""
    path = tmp_path_factory.mktemp("log") / "0.log"
    sent = {STDOUT: b"", STDERR: b""}
    settled = {STDOUT: 0, STDERR: 0}
    first = CriLog(str(path))
    await first.open()
    for stream, data in writes[:death]:
        sent[stream] += data
        settled[stream] = await first.write(stream, data)
    await first.close()
    second = CriLog(str(path))
    await second.open()
    for stream in sent:
        second.resume(stream, settled[stream])
        await second.write(stream, sent[stream][settled[stream] :])
    for stream, data in writes[death:]:
        sent[stream] += data
        await second.write(stream, data)
    for stream in sent:
        assert await second.end(stream) == len(sent[stream])
    await second.close()
    for stream, name in ((STDOUT, b"stdout"), (STDERR, b"stderr")):
        assert joined(path.read_bytes(), name) == sent[stream]


async def test_reopen_after_rename(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    log = CriLog(str(path))
    await log.open()
    await log.write(STDOUT, b"before\n")
    path.rename(tmp_path / "0.log.1")
    await log.write(STDOUT, b"still the old file\nhalf")
    await log.reopen()
    await log.write(STDOUT, b" a line\n")
    await log.close()
    assert [c for _, _, c in parse((tmp_path / "0.log.1").read_bytes())] == [b"before", b"still the old file"]
    assert [c for _, _, c in parse(path.read_bytes())] == [b"half a line"]


async def test_failed_reopen_makes_no_file_later(tmp_path: Path) -> None:
    directory = tmp_path / "pod"
    path = directory / "0.log"
    log = CriLog(str(path))
    await log.open()
    shutil.rmtree(directory)
    with pytest.raises(FailedPrecondition, match=re.escape(str(path))):
        await log.reopen()
    directory.mkdir()
    await log.write(STDOUT, b"into the void\n")
    await log.close()
    assert not path.exists()
    assert log.lost == 0


async def test_full_disk_loses_lines_only() -> None:
    log = CriLog("/dev/full")
    await log.open()
    assert await log.write(STDOUT, b"line\n") == 5
    assert log.lost > 0
    await log.close()


async def test_unopenable(tmp_path: Path) -> None:
    (tmp_path / "0.log").mkdir()
    with pytest.raises(FailedPrecondition, match=r"0\.log"):
        await CriLog(str(tmp_path / "0.log")).open()


async def test_without_a_path_output_is_swallowed() -> None:
    log = CriLog("")
    await log.open()
    assert await log.write(STDOUT, b"line\nhalf") == 5
    await log.reopen()
    await log.close()


async def test_big_output_does_not_grow_memory() -> None:
    log = CriLog("/dev/null")
    await log.open()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chunk = (b"0123456789 abcdefghij\n" * 3000)[: 64 * 1024]
    for _ in range(1600):
        await log.write(STDOUT, chunk)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024
    await log.close()


async def test_what_is_settled_is_counted_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    log = CriLog(str(path))
    await log.open()
    await log.write(STDOUT, b"before\n")
    position = await log.position()
    assert position is not None and position.stdout == 7
    out = b"x" * (MAX_LINE + 100) + b"\nshort\n\nunfinished"
    settled = await log.write(STDOUT, out)
    await log.write(STDERR, b"oops\n")
    await log.close()
    assert settled_since(str(path), position) == (7 + settled - 7, 5)
    path.rename(tmp_path / "0.log.20260101-000000")
    assert settled_since(str(path), position) == (settled, 5)
    (tmp_path / "0.log.20260101-000000").unlink()
    assert settled_since(str(path), position) == (7, 0)


async def test_a_last_line_without_a_newline_is_counted_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    log = CriLog(str(path))
    await log.open()
    position = await log.position()
    assert position is not None
    await log.write(STDOUT, b"one\nDONE")
    assert await log.end(STDOUT) == 8
    await log.close()
    assert settled_since(str(path), position) == (8, 0)


async def test_a_line_cut_short_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    log = CriLog(str(path))
    await log.open()
    position = await log.position()
    assert position is not None
    await log.write(STDOUT, b"whole\n")
    await log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b"2026-01-01T00:00:00.000000000Z stdout F cut sho")
    assert settled_since(str(path), position) == (6, 0)
    assert path.read_bytes() == whole


async def test_a_crash_just_after_the_log_was_reopened(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    log = CriLog(str(path))
    await log.open()
    position = await log.position()
    assert position is not None
    await log.write(STDOUT, b"one\n")
    path.rename(tmp_path / "0.log.20260101-000000")
    await log.reopen()
    await log.write(STDOUT, b"second\n")
    await log.close()
    assert settled_since(str(path), position) == (11, 0)


def time_for(line: bytes) -> float:
    """Seconds of a processor to write 256 KiB of such lines, at best."""
    lines = line * ((256 << 10) // len(line))
    took = []
    for _ in range(5):
        begin = time.thread_time()
        format_lines(STDOUT, lines, 0)
        took.append(time.thread_time() - begin)
    return min(took)


def test_long_lines_cost_no_more_than_short_ones() -> None:
    """Who wrote lines just short enough for one of the log's held up the daemon, and all pods with it."""
    assert time_for(b"x" * MAX_LINE + b"\n") < 10 * time_for(b"x" * 99 + b"\n")
