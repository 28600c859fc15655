"""Output goes to the log and to who is attached, and is acknowledged only when it is written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orlop.errors import Unavailable
from orlop.sandbox.crilog import STDERR, STDOUT, CriLog
from orlop.sandbox.vm.output import Output, Tap
from orlop.sandbox.vm.streams import Incoming
from orlop.wire.framing import Frame, Kind, Parser, preamble
from tests.patience import until


class Line:
    """Two streams whose frames are kept."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self._parser = Parser()
        self._parser.feed(preamble(b"0" * 16))
        self.sent: list[Frame] = []
        self.streams = {
            number: Incoming(number, self._send, lambda stream: None, wake=self.wake)
            for number in (STDOUT, STDERR)
        }

    def _send(self, encoded: bytes) -> None:
        self.sent.extend(self._parser.feed(encoded))

    def acked(self, stream: int) -> int:
        return max((f.offset for f in self.sent if f.kind is Kind.ACK and f.stream == stream), default=0)

    def data(self, stream: int, offset: int, payload: bytes) -> None:
        self.streams[stream].on_frame(Frame(Kind.DATA, stream, payload, offset))

    def end(self, stream: int, offset: int) -> None:
        self.streams[stream].on_frame(Frame(Kind.EOF, stream, b"", offset))


async def output_to(path: Path, line: Line) -> Output:
    log = CriLog(str(path))
    await log.open()
    output = Output("c1", log, line.streams, line.wake)
    output.start()
    return output


async def test_lines_are_logged_and_acknowledged(tmp_path: Path) -> None:
    path, line = tmp_path / "0.log", Line()
    output = await output_to(path, line)
    line.data(STDOUT, 0, b"one\ntw")
    line.data(STDERR, 0, b"oops\n")
    await until(lambda: line.acked(STDOUT) == 4 and line.acked(STDERR) == 5)
    assert path.read_text().count(" F ") == 2
    line.data(STDOUT, 6, b"o")
    line.end(STDOUT, 7)
    line.end(STDERR, 5)
    await asyncio.wait_for(output.ended.wait(), 20)
    assert (line.acked(STDOUT), line.acked(STDERR)) == (8, 6)
    assert path.read_text().splitlines()[-1].endswith("stdout P two")
    await output.stop()


async def test_a_slow_client_holds_up_the_stream_only(tmp_path: Path) -> None:
    line = Line()
    output = await output_to(tmp_path / "0.log", line)
    tap = output.tap()
    line.data(STDOUT, 0, b"hello\n")
    chunks = tap.chunks()
    assert await anext(chunks) == (STDOUT, b"hello\n")
    block = b"x" * 65535 + b"\n"
    offset = 6
    for _ in range(24):
        before = line.acked(STDOUT)
        line.data(STDOUT, offset, block)
        offset += len(block)
        await asyncio.sleep(0.01)
        if line.acked(STDOUT) == before:
            break
    else:
        pytest.fail("nothing held the stream up")
    await output.untap(tap)
    await until(lambda: line.acked(STDOUT) == offset)
    await output.stop()


async def test_the_last_words_of_a_vm_that_dies(tmp_path: Path) -> None:
    path, line = tmp_path / "0.log", Line()
    output = await output_to(path, line)
    tap = output.tap()
    line.data(STDOUT, 0, b"whole\nhalf")
    for stream in line.streams.values():
        stream.fail(Unavailable("the VM is gone"))
    await asyncio.wait_for(output.ended.wait(), 20)
    assert [chunk async for chunk in tap.chunks()] == [(STDOUT, b"whole\nhalf")]
    assert path.read_text().splitlines()[-1].endswith("stdout P half")
    await output.stop()


async def test_stopping_leaves_the_unfinished_line_to_the_guest(tmp_path: Path) -> None:
    path, line = tmp_path / "0.log", Line()
    output = await output_to(path, line)
    line.data(STDOUT, 0, b"whole\nhalf")
    await until(lambda: path.stat().st_size > 0)
    await output.stop()
    assert line.streams[STDOUT].offset == 6
    assert "half" not in path.read_text()


async def test_clients_may_go_while_the_others_are_told_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaving(Tap):
        async def end(self) -> None:
            await super().end()
            if self in output._taps:
                await output.untap(self)

    monkeypatch.setattr("orlop.sandbox.vm.output.Tap", Leaving)
    line = Line()
    output = await output_to(tmp_path / "0.log", line)
    taps = [output.tap() for _ in range(3)]
    line.end(STDOUT, 0)
    line.end(STDERR, 0)
    await asyncio.wait_for(output.ended.wait(), 30)
    for tap in taps:
        assert [chunk async for chunk in tap.chunks()] == []
    await output.stop()
