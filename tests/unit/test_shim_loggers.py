"""Logging programs, which are real ones: started, read from, ended, found again."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.host import process
from orlop.shim import loggers, stdio
from orlop.shim.loggers import Loggers
from orlop.shim.stdio import Stdio
from tests.patience import PATIENCE, until

KEY = ("space", "one")
READS = """
echo "$CONTAINER_NAMESPACE $CONTAINER_ID $(env | grep -v ^PWD= | wc -l) $*" > "$2/asked"
cat <&3 > "$2/out" 5>&- &
cat <&4 > "$2/err" 5>&- &
exec 5>&-
wait
echo done > "$2/done"
"""


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Loggers]:
    one = Loggers(tmp_path / "state")
    yield one
    await one.end(KEY, "")
    await one.close()


def program(root: Path, script: str) -> str:
    path = root / "a logger"
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)
    return f"binary://{quote(os.fspath(path))}?into={quote(os.fspath(root))}&flag="


def asked(uri: str) -> Stdio:
    return stdio.of("", uri, uri, terminal=False)


def write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(descriptor, data)
    os.close(descriptor)


def left(root: Path) -> list[Path]:
    """The directories of programs."""
    return list((root / "state" / loggers.PLACE).iterdir())


async def test_a_program_reads_all_and_is_gone_then(tmp_path: Path, made: Loggers) -> None:
    found = await made.start(KEY, "", asked(program(tmp_path, READS)))
    assert found.fifos == [found.stdout, found.stderr] and found.named == (found.program, found.program)
    write(found.stdout, b"out\n")
    write(found.stderr, b"err\n")
    await made.end(KEY, "")
    assert (tmp_path / "out").read_text() == "out\n"
    assert (tmp_path / "err").read_text() == "err\n"
    assert (tmp_path / "done").exists() and left(tmp_path) == []
    assert (tmp_path / "asked").read_text() == f"space one 2 into {tmp_path} flag \n"


async def test_the_program_of_an_exec_gets_the_execs_name(tmp_path: Path, made: Loggers) -> None:
    await made.start(KEY, "more", asked(program(tmp_path, READS)))
    await made.end(KEY, "more")
    assert (tmp_path / "asked").read_text().startswith("space more ")


@pytest.mark.parametrize(
    ("script", "scheme", "said"),
    [
        ("exit 3", "binary", "ended with exit status 3 before it was ready"),
        ("kill -9 $$", "binary", "ended with signal 9 before it was ready"),
        ("exec 5>&-; exit 4", "binary-v2", "ended with exit status 4 before it was ready"),
        ("sleep 1000", "binary", "has not said within 0.5 seconds that it is ready"),
    ],
)
async def test_one_that_is_never_ready_leaves_nothing(
    tmp_path: Path, made: Loggers, monkeypatch: pytest.MonkeyPatch, script: str, scheme: str, said: str
) -> None:
    if "1000" in script:
        monkeypatch.setattr(loggers, "READY_TIME", 0.5)
    uri = program(tmp_path, script).replace("binary", scheme, 1)
    with pytest.raises(FailedPrecondition, match=f"task one: the logging program .*a logger {said}"):
        await made.start(KEY, "", asked(uri))
    assert left(tmp_path) == []


async def test_one_that_says_so_with_a_byte_may_be_asked_for_that(tmp_path: Path, made: Loggers) -> None:
    uri = program(tmp_path, f"printf r >&5\n{READS}").replace("binary", "binary-v2", 1)
    await made.start(KEY, "", asked(uri))
    await made.end(KEY, "")
    assert (tmp_path / "done").exists()


async def test_what_is_no_program_is_refused(tmp_path: Path, made: Loggers) -> None:
    with pytest.raises(FailedPrecondition, match="cannot be started: it is not there, or no program"):
        await made.start(KEY, "", asked(f"binary://{tmp_path}/missing"))
    for wrong in ("binary:relative", f"binary:///x?{'&'.join(f'a{number}=' for number in range(200))}"):
        with pytest.raises(InvalidArgument):
            await made.start(KEY, "", asked(wrong))
    with pytest.raises(InvalidArgument, match="longer"):
        asked("binary:///" + "a" * 5000)


async def test_one_that_dies_holds_nobody_up(tmp_path: Path, made: Loggers) -> None:
    found = await made.start(KEY, "", asked(program(tmp_path, "exec 5>&-; read -r line <&3; exit 1")))
    writer = os.open(found.stdout, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(writer, b"line\n")
        sent = 0

        def more_than_fits() -> bool:
            nonlocal sent
            try:
                sent += os.write(writer, b"x" * 4096)
            except BlockingIOError:
                return False
            return sent > 1 << 20

        await until(more_than_fits)
    finally:
        os.close(writer)


async def test_one_that_stays_is_killed(
    tmp_path: Path, made: Loggers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "LEAVE_TIME", 0.1)
    monkeypatch.setattr(loggers, "TERM_TIME", 0.1)
    script = f"trap '' TERM; sleep 1000 5>&- & echo $! > '{tmp_path}/child'; exec 5>&-; wait; sleep 1000"
    await made.start(KEY, "", asked(program(tmp_path, script)))
    child = int((tmp_path / "child").read_text())
    await made.end(KEY, "")
    assert left(tmp_path) == []
    await until(lambda: not process.pid_alive(child, process.process_start_time(child)))


async def test_who_ends_it_too_spares_the_next_of_that_name(
    tmp_path: Path, made: Loggers, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = asked(program(tmp_path, "exec 5>&-; read -r line <&3; exit 0"))
    found = await made.start(KEY, "", streams)
    write(found.stdout, b"line\n")
    look, calls, slow = process.working_in, [0], threading.Event()

    def looked(directory: Path) -> list[int]:
        calls[0] += 1
        if calls[0] > 1:
            assert slow.wait(60 * PATIENCE)
        return look(directory)

    monkeypatch.setattr(process, "working_in", looked)
    both = [asyncio.create_task(made.end(KEY, "")) for _ in range(2)]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        await made.start(KEY, "", streams)
    finally:
        slow.set()
    await asyncio.gather(*both)
    (next_one,) = made._loggers.values()
    assert next_one.running is not None and left(tmp_path) == [next_one.directory]
    assert process.pid_alive(next_one.running.pid, next_one.running.since)


@asynccontextmanager
async def killed(one: Loggers) -> AsyncIterator[None]:
    """A daemon that is no more, whose child is in the end reaped by who is left."""
    (logger,) = one._loggers.values()
    await one.close()
    yield
    assert logger.child is not None
    await logger.child.wait()


async def test_it_outlives_the_daemon_while_the_keeper_holds_what_it_reads(tmp_path: Path) -> None:
    streams = asked(program(tmp_path, READS))
    first, later = Loggers(tmp_path / "state"), Loggers(tmp_path / "state")
    found = await first.start(KEY, "", streams)
    kept = [stdio.both_ends(path) for path in found.fifos]
    async with killed(first):
        await later.find_again(KEY, "", streams)
        await later.sweep()
        for descriptor in kept:
            os.close(descriptor)
        write(found.stdout, b"late\n")
        await later.end(KEY, "")
    assert (tmp_path / "out").read_text() == "late\n" and left(tmp_path) == []
    await later.close()


async def test_one_that_nobody_knows_of_is_ended(tmp_path: Path) -> None:
    first, later = Loggers(tmp_path / "state"), Loggers(tmp_path / "state")
    await first.start(KEY, "", asked(program(tmp_path, "exec 5>&-; sleep 1000")))
    (directory,) = left(tmp_path)
    (directory / "process.json").write_bytes(b'{"pid":')
    async with killed(first):
        await later.sweep()
        await until(lambda: left(tmp_path) == [])
    await later.close()
