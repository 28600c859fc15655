"""An exec of a process pod whose runtime is slow to say which process it has started."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from orlop.host import process
from orlop.sandbox.process.runtime import Runtime
from orlop.sandbox.process.streams import HostExec
from orlop.sandbox.spec import ExecSpec
from tests.patience import until

SLOW = """#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --pid-file) file=$2;; esac
    shift
done
setsid sleep 999 >/dev/null 2>&1 &
echo $! > "$0.started"
while [ ! -e "$0.say" ]; do sleep 0.01; done
echo $! > "$file.new"
mv "$file.new" "$file"
wait
"""


class SlowExec:
    """An exec, and the process that its runtime has started and not named yet."""

    def __init__(self, running: HostExec, inner: int, say: Path) -> None:
        self.running = running
        self.since = process.process_start_time(inner)
        self.inner = inner
        self._say = say

    def say(self) -> None:
        """Let the runtime name the process."""
        self._say.touch()

    def alive(self) -> bool:
        """Whether the process runs."""
        return process.pid_alive(self.inner, self.since)


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[SlowExec]:
    program = tmp_path / "runtime"
    program.write_text(SLOW)
    program.chmod(0o755)
    started = tmp_path / "runtime.started"
    (tmp_path / "config.json").write_text(json.dumps({"process": {"env": [], "cwd": "/"}}))
    runtime = Runtime("slow", os.fspath(program), "1", tmp_path / "state", systemd=False)
    running = await HostExec.start(runtime, "c", ExecSpec(args=("sleep", "999")), tmp_path / "exec-1", "c")
    await until(lambda: started.exists() and started.read_text().strip() != "")
    one = SlowExec(running, int(started.read_text()), tmp_path / "runtime.say")
    try:
        yield one
    finally:
        one.say()
        await running.close()
        with suppress(ProcessLookupError):
            process.send_signal(one.inner, one.since, 9)


async def test_an_exec_that_is_closed_early_leaves_no_process(slow: SlowExec) -> None:
    closing = asyncio.create_task(slow.running.close())
    await asyncio.sleep(0.1)
    slow.say()
    await closing
    await until(lambda: not slow.alive())


async def test_a_signal_that_comes_early_is_not_lost(slow: SlowExec) -> None:
    sending = asyncio.create_task(slow.running.signal(15))
    await asyncio.sleep(0.1)
    assert slow.alive()
    slow.say()
    await sending
    await until(lambda: not slow.alive())
