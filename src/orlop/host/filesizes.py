"""How large a file another process may make: one that has files of the host open, and may be taken over.

The bound is the soft limit RLIMIT_FSIZE of setrlimit(2). It counts for every regular file, and not for block
devices. The hard limit stays as it is: without CAP_SYS_RESOURCE nobody could raise it again, while root may
raise the soft one of a process in a user namespace that root has made. So the process itself must not be able
to set limits.
"""

from __future__ import annotations

import resource
import threading
from contextlib import suppress

_changing = threading.Lock()


def bound(pid: int, size: int) -> None:
    """No file may become longer than ``size`` bytes. Raises OSError."""
    with _changing:
        _set(pid, size)


def allow(pid: int, size: int) -> None:
    """Let files have ``size`` bytes, if they may not already. Raises OSError."""
    with _changing, suppress(ProcessLookupError):
        now = resource.prlimit(pid, resource.RLIMIT_FSIZE)[0]
        if now != resource.RLIM_INFINITY and now < size:
            _set(pid, size)


def unbound(pid: int) -> None:
    """Let files be of any size. Raises OSError."""
    with _changing:
        _set(pid, resource.RLIM_INFINITY)


def _set(pid: int, size: int) -> None:
    with suppress(ProcessLookupError):
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        if hard != resource.RLIM_INFINITY:
            size = hard if size == resource.RLIM_INFINITY else min(size, hard)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
