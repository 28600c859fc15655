"""Output as it is: what a file, a FIFO and a terminal get, and what is known of it afterwards."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import FailedPrecondition
from orlop.sandbox.crilog import STDERR, STDOUT
from orlop.sandbox.rawoutput import RawOutput, written_since
from orlop.sandbox.spec import Sink


async def opened(sink: Sink) -> RawOutput:
    output = RawOutput(sink)
    await output.open()
    return output


async def test_a_file_is_appended_to_and_counted_over_a_restart(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"before")
    sink = Sink(stdout=str(tmp_path / "out"), stderr=str(tmp_path / "err"))
    output = await opened(sink)
    assert await output.write(STDOUT, b"one") == 3
    marks = await output.marks()
    assert await output.write(STDOUT, b"two") == 6
    assert await output.write(STDERR, b"err") == 3
    assert await output.end(STDOUT) == 6
    await output.close()
    assert written_since(marks, sink) == (6, 3)
    later = await opened(sink)
    later.resume(STDOUT, 6)
    assert await later.write(STDOUT, b"three") == 11
    await later.close()
    assert (tmp_path / "out").read_bytes() == b"beforeonetwothree"
    assert (tmp_path / "err").read_bytes() == b"err"
    (tmp_path / "out").unlink()
    assert written_since(marks, sink) == (3, 3)


async def test_two_streams_in_one_file_are_not_counted(tmp_path: Path) -> None:
    path = str(tmp_path / "both")
    output = await opened(Sink(stdout=path, stderr=path))
    await output.write(STDOUT, b"a")
    await output.write(STDERR, b"b")
    assert await output.marks() == () and written_since((), Sink(stdout=path, stderr=path)) == (0, 0)
    await output.close()
    assert Path(path).read_bytes() == b"ab"


async def test_a_full_pipe_holds_up_the_writer_and_nobody_else(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    output = await opened(Sink(stdout=str(tmp_path / "fifo")))
    data = os.urandom(1 << 20)
    writing = asyncio.ensure_future(output.write(STDOUT, data))
    await asyncio.sleep(0.05)
    assert not writing.done()
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    found = b""
    while len(found) < len(data):
        try:
            found += os.read(reading, 1 << 16)
        except BlockingIOError:
            await asyncio.sleep(0.001)
    assert await writing == len(data) and found == data
    assert await output.marks() == ()
    blocked = asyncio.ensure_future(output.write(STDOUT, data))
    await asyncio.sleep(0.02)
    blocked.cancel()
    await asyncio.gather(blocked, return_exceptions=True)
    await asyncio.wait_for(output.close(), 20)
    os.close(reading)


async def test_without_a_reader_nothing_fails(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    output = await opened(Sink(stdout=str(tmp_path / "fifo")))
    assert await output.write(STDOUT, b"kept") == 4
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reading, 100) == b"kept"
    await output.close()
    assert os.read(reading, 100) == b""
    os.close(reading)


async def test_a_terminal_and_a_descriptor(tmp_path: Path) -> None:
    master, slave = os.openpty()
    reading, writing = os.pipe()
    sink = Sink(stdout=os.ttyname(slave), stderr=f"/proc/self/fd/{writing}")
    output = await opened(sink)
    await output.write(STDOUT, b"shown")
    await output.write(STDERR, b"piped")
    assert os.read(master, 100) == b"shown" and os.read(reading, 100) == b"piped"
    assert os.get_blocking(writing)  # the other's own descriptor is left as it is
    await output.close()
    for descriptor in (master, slave, reading, writing):
        os.close(descriptor)


async def test_files_are_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    output = await opened(Sink(stdout=str(path)))
    await output.write(STDOUT, b"old")
    path.rename(tmp_path / "out.1")
    await output.reopen()
    await output.write(STDOUT, b"new")
    path.unlink()
    path.mkdir()
    with pytest.raises(FailedPrecondition):
        await output.reopen()
    await output.write(STDOUT, b"more")
    await output.close()
    assert (tmp_path / "out.1").read_bytes() == b"old"


async def test_a_full_disk_loses_output_and_not_the_container() -> None:
    output = await opened(Sink(stdout="/dev/full"))
    assert await output.write(STDOUT, b"lost") == 4
    assert output.lost == 4
    await output.close()


@pytest.mark.parametrize("kind", ["directory", "socket", "nowhere"])
async def test_what_is_no_place_for_output(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x" / "y"
    if kind == "directory":
        path.mkdir(parents=True)
    elif kind == "socket":
        import socket

        path = Path(f"/tmp/orlop-test-{os.getpid()}.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    output = RawOutput(Sink(stdout=str(path)))
    with pytest.raises(FailedPrecondition, match=f"stdout cannot go to {path}"):
        await output.open()
    await output.close()
    if kind == "socket":
        path.unlink()


@given(st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=200)), max_size=20))
async def test_any_output_arrives_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[int, bytes]]
) -> None:
    place = tmp_path_factory.mktemp("raw")
    output = await opened(Sink(stdout=str(place / "1"), stderr=str(place / "2")))
    for stream, data in chunks:
        await output.write(stream, data)
    await output.close()
    for stream in (STDOUT, STDERR):
        whole = b"".join(data for number, data in chunks if number == stream)
        assert (place / str(stream)).read_bytes() == whole
