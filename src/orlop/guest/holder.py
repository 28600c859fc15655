"""Process 1 of the PID namespace that the containers of a pod share."""

from __future__ import annotations

import signal
from typing import NoReturn

from orlop.guest import syscalls
from orlop.guest.spawn import Control


def hold(control: Control) -> NoReturn:
    """Sleep for ever. Orphans are reaped by the kernel, since nobody asks for their exit."""
    syscalls.set_process_name("pause")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        signal.pause()
