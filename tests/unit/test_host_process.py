import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE, SubprocessStreamProtocol
from pathlib import Path

import pytest

from orlop.errors import DeadlineExceeded, NotFound, ResourceExhausted
from orlop.host import process
from tests.patience import PATIENCE


async def test_run_returns_both_streams_and_feeds_stdin() -> None:
    done = await process.run(["sh", "-c", "cat; echo oops >&2"], input=b"hello")
    assert done == process.Completed(0, b"hello", b"oops\n")


async def test_run_survives_a_child_that_ignores_its_stdin() -> None:
    await process.run(["true"], input=b"x" * (1 << 20))


async def test_a_failure_names_program_status_and_stderr() -> None:
    with pytest.raises(process.ProcessFailed, match=r"sh failed with exit status 3: no luck") as caught:
        await process.run(["sh", "-c", "echo no luck >&2; exit 3"])
    assert caught.value.returncode == 3
    assert (await process.run(["sh", "-c", "exit 3"], check=False)).returncode == 3


async def test_a_missing_program_is_not_found() -> None:
    with pytest.raises(NotFound, match="no-such-program is not installed"):
        await process.run(["no-such-program"])
    with pytest.raises(NotFound, match="no such directory"):
        await process.run(["true"], cwd="/no/such/dir")


async def test_endless_output_is_cut() -> None:
    with pytest.raises(ResourceExhausted, match="more than 65536 bytes"):
        await process.run(["cat", "/dev/zero"], output_limit=65536)


async def _end_of_the_group(pgid: int) -> None:
    """Return when nothing of a group runs: what is killed ends in its own time."""
    async with asyncio.timeout(20 * PATIENCE):
        while _children_of_the_group(pgid):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


def _children_of_the_group(pgid: int) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == pgid and fields[0] != "Z":
                found.append(entry.name)
    return found


async def test_a_timeout_kills_the_whole_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"echo $$ > {pid_file}; sleep 6000 & sleep 6000"
    with pytest.raises(DeadlineExceeded, match=r"within 1\.5 seconds"):
        await process.run(["sh", "-c", script], timeout=1.5)
    await _end_of_the_group(int(pid_file.read_text()))


async def test_a_cancellation_kills_and_reaps(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"echo $$ > {pid_file}; sleep 6000 & sleep 6000"
    task = asyncio.create_task(process.run(["sh", "-c", script]))
    while not (pid_file.exists() and pid_file.read_text()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pid = int(pid_file.read_text())
    assert process.process_start_time(pid) == 0
    await _end_of_the_group(pid)


async def test_a_cancellation_while_a_child_starts_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    connected = SubprocessStreamProtocol.connection_made

    def slowly(self: SubprocessStreamProtocol, transport: asyncio.BaseTransport) -> None:
        # The child is as far as it gets before the event loop comes to connect its pipes.
        while not (pid_file.exists() and pid_file.read_text()):
            time.sleep(0.01)
        task.cancel()
        connected(self, transport)

    monkeypatch.setattr(SubprocessStreamProtocol, "connection_made", slowly)
    script = f"sleep 6000 & echo $$ > {pid_file}; sleep 6000"
    task = asyncio.create_task(process.run(["sh", "-c", script]))
    with pytest.raises(asyncio.CancelledError):
        await task
    await _end_of_the_group(int(pid_file.read_text()))


async def test_a_process_is_known_by_pid_and_start_time() -> None:
    child = await process.spawn(["sleep", "60"])
    start = process.process_start_time(child.pid)
    assert start > 0
    assert process.pid_alive(child.pid, start)
    assert not process.pid_alive(child.pid, start + 1)
    await process.kill_pid(child.pid, start + 1)
    assert process.pid_alive(child.pid, start)
    waiter = asyncio.create_task(process.wait_pid(child.pid))
    await process.kill_pid(child.pid, start)
    await asyncio.wait_for(waiter, 5)
    assert await child.wait() == -9
    await process.kill_pid(child.pid, start)
    await process.wait_pid(child.pid)


async def test_kill_asks_first_when_given_grace() -> None:
    child = await process.spawn(["sleep", "60"])
    await process.kill_pid(child.pid, process.process_start_time(child.pid), grace=5)
    assert await child.wait() == -15


async def test_own_start_time_is_read_despite_odd_names() -> None:
    script = "open('/proc/self/comm','w').write('a) R 1 (b'); print(open('/proc/self/stat').read())"
    done = await process.run([sys.executable, "-c", script + "; import time; time.sleep(0)"])
    assert b"a) R 1 (b" in done.stdout
    assert process.process_start_time(os.getpid()) > 0


_OUTLIVES = """
import asyncio, sys
from orlop.host import process

async def main() -> None:
    child = await process.spawn_detached(["sleep", "60"])
    print(child.pid, child.start_time)

asyncio.run(main())
"""


async def test_detached_child_outlives_loop_and_process() -> None:
    done = await process.run([sys.executable, "-c", _OUTLIVES], env=dict(os.environ))
    pid, start_time = (int(word) for word in done.stdout.split())
    assert process.pid_alive(pid, start_time)
    await process.kill_pid(pid, start_time)
    assert not process.pid_alive(pid, start_time)


async def test_detached_child_is_reaped_by_its_owner() -> None:
    child = await process.spawn_detached(["sh", "-c", "exit 3"])
    assert await child.wait() == 3
    assert await child.wait() == 3
    assert child.returncode == 3
    with pytest.raises(NotFound, match="no-such-program"):
        await process.spawn_detached(["no-such-program"])


async def test_output_that_nobody_reads_does_not_hold_up_the_end() -> None:
    async with asyncio.timeout(90):
        for _ in range(40):
            with pytest.raises(ResourceExhausted):
                await process.run(["cat", "/dev/zero"], output_limit=65536)


async def test_a_grandchild_with_our_pipe_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """It left the process group, so it lives on; it must not keep the caller."""
    pid_file = tmp_path / "pid"
    script = f"setsid sleep 60 & echo $! >> {pid_file}; cat /dev/zero"
    try:
        async with asyncio.timeout(20):
            with pytest.raises(ResourceExhausted):
                await process.run(["sh", "-c", script], output_limit=65536)
            with pytest.raises(DeadlineExceeded):
                await process.run(["sh", "-c", script], timeout=0.2, output_limit=1 << 40)
    finally:
        for pid in map(int, pid_file.read_text().split()):
            await process.kill_pid(pid, process.process_start_time(pid))


async def test_reaping_does_not_wait_for_input_that_nobody_reads(tmp_path: Path) -> None:
    child = await process.spawn(["sh", "-c", "setsid sleep 60 & echo $!; wait"], stdin=PIPE, stdout=PIPE)
    assert child.stdin is not None and child.stdout is not None
    sleeper = int(await child.stdout.readline())
    child.stdin.write(bytes(1 << 20))
    try:
        async with asyncio.timeout(20):
            await process.reap(child)
            await process.reap(child)
        assert child.returncode == -9
    finally:
        await process.kill_pid(sleeper, process.process_start_time(sleeper))
