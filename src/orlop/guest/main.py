"""The agent's start: as process 1 of a VM."""

from __future__ import annotations

import signal
import sys

from orlop.guest.devices import channel
from orlop.guest.dispatch import Dispatcher
from orlop.guest.loop import Loop
from orlop.guest.machine import boot, cgroup
from orlop.linux import syscalls


def main() -> None:
    """Be the agent of this VM; never returns while the VM lives."""
    syscalls.set_process_name("orlop-agent")
    # Process 1 of a PID namespace that containers share has the agent's command line.
    syscalls.set_command_line("/pause")
    # Before there is anybody who could look.
    syscalls.forbid_inspection()
    boot.mount_all()
    boot.tune()
    boot.raise_limits()
    cgroup.prepare()
    run(channel.connect())


def _ignore_no_signal() -> None:
    """Let containers start with all signals at their defaults.

    Python ignores these, and what is ignored stays so over execve(2); what is handled does not.
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, lambda number, frame: None)


def run(fd: int) -> None:
    """Serve the channel ``fd`` for ever."""

    def on_error(text: str) -> None:
        dispatcher.log(text)

    _ignore_no_signal()
    loop = Loop(on_error)
    dispatcher = Dispatcher(loop, fd)
    sys.stderr.write("agent: ready\n")
    sys.stderr.flush()
    loop.run()
