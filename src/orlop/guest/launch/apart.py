"""Doing something that may take long in a process of its own: mounting what others have made, walking a large
volume. The agent serves everybody else meanwhile, and hears of the end as of any child's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from orlop.wire.messages import Refused

_MOST = 4096


@dataclass(frozen=True)
class Apart:
    """A process that does something; ``said`` is a pipe on which it says what went wrong."""

    pid: int
    said: int

    def problem(self, code: int) -> Refused | None:
        """What went wrong, once it has ended with ``code``; to be asked once."""
        try:
            text = os.read(self.said, _MOST).decode(errors="replace")
        except BlockingIOError:
            text = ""
        finally:
            os.close(self.said)
        if code == 0:
            return None
        if not text:
            return Refused("internal", f"the process that was to do it ended with code {code}")
        return Refused("failed_precondition", text)


def start(work: Callable[[], None]) -> Apart:
    """Do ``work`` in a process of its own. It fails by an exception, whose text is for people."""
    said, saying = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    pid = os.fork()
    if pid == 0:
        _run(work, saying)
    os.close(saying)
    return Apart(pid, said)


def _run(work: Callable[[], None], saying: int) -> None:
    """The process' whole life: nothing of the agent's may run in it, not even its end."""
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        os.write(saying, str(error).encode()[:_MOST])
    finally:
        os._exit(code)
