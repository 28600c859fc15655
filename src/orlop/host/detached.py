"""A program that goes on without whoever started it: started with what it is to hold, and nothing else.

For programs with one thread that end soon. Of the standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

_SPARE = 3


def start(argv: Sequence[str], directory: str, held: Sequence[int]) -> None:
    """Run ``argv`` in ``directory``, in a session of its own, a child of nobody here.

    Its streams are /dev/null, and the descriptors ``held`` are 3, 4 and so on. Returns when it was started;
    raises OSError for a directory or a program that is not there.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _leave(argv, directory, held, writing)
    os.close(writing)
    os.waitpid(child, 0)
    problem = os.read(reading, 64)
    os.close(reading)
    if problem:
        raise OSError(int(problem), os.strerror(int(problem)), argv[0])


def _leave(argv: Sequence[str], directory: str, held: Sequence[int], told: int) -> None:
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir(directory)
        null = os.open(os.devnull, os.O_RDWR)
        above = max(told, null, *held) + _SPARE + len(held)
        copies = [_copy(fd, above) for fd in held]
        told = _copy(told, above)
        for number in range(_SPARE):
            os.dup2(null, number)
        for number, fd in enumerate(copies, _SPARE):
            os.dup2(fd, number)
        os.closerange(_SPARE + len(copies), told)
        os.closerange(told + 1, os.sysconf("SC_OPEN_MAX"))
        os.execve(argv[0], list(argv), os.environ.copy())
    except OSError as error:
        os.write(told, str(error.errno or 5).encode())
    os._exit(1)


def _copy(fd: int, above: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above)
