"""A process of the host that stands in for one in a virtual machine.

Callers of an OCI runtime watch a process: they are its subreaper, read its end from wait(2), send it
signals and find namespaces through it. The stand-in is that process. It does nothing but to hold what it
was given: streams, which whoever serves the machine opens anew through ``/proc/PID/fd``, and two pipes. It
writes the numbers of the signals that it gets to one; from the other it reads its exit code, with which it
ends.

Both ends of each pipe are the stand-in's own. So it outlives who talks to it, and nothing of it is left when
it is gone. It is a shell, of which all share one program: some 300 KiB of memory each, most of it the
kernel's.
"""

from __future__ import annotations

# The one without the underscore first makes enumerations of all its constants.
import _signal as signal  # type: ignore[import-not-found]
import fcntl
import os
import sys

from orlop.errors import FailedPrecondition

# The name tells type checkers: importing typing would cost commands a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

EXIT, SIGNALS, _MUTE, STDIN, STDOUT, STDERR = range(6)
"""Its descriptors. The pipes are where a shell reads and writes by itself: to redirect them it would put what
is there aside for a moment."""

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_SPARE = 16
_MOST = 1 << 16
_SHELL = "/bin/sh"
_HEARD = [number for number in range(1, 65) if number not in (9, 17, 18, 19, 20, 21, 22, 32, 33)]
"""All but those that cannot be caught, are the C library's, or stop and continue the process itself."""
_SCRIPT = (
    "".join(f"trap 'echo {number}' {number}\n" for number in _HEARD)
    + "until read -r code; do :; done\nexit $code\n"
)
_CODE_LOST = 255
_READ = 1 << 12


def make(stdio: tuple[int, int, int], directory: str, *, netns: str = "", terminal: bool = False) -> int:
    """Make one with these streams, in the network namespace at the path ``netns``; returns its pid.

    "" gives it a network namespace of its own, with nothing in it. ``directory`` is its working directory;
    with ``terminal`` its stdin is the terminal of its session. For a program with one thread, whose child
    it is. Raises FailedPrecondition.
    """
    news, told = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become(stdio, directory, netns, terminal, told)
    os.close(told)
    problem = os.read(news, _READ)
    os.close(news)
    if problem:
        os.waitpid(pid, 0)
        raise FailedPrecondition(problem.decode(errors="replace"))
    return pid


def _become(stdio: tuple[int, int, int], directory: str, netns: str, terminal: bool, told: int) -> NoReturn:
    what = "the process that stands in for the container's"
    try:
        told = _aside(told)
        mute = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        held = [_aside(fd) for fd in (_both_ways(), _both_ways(), mute, *stdio)]
        # What comes faster than it is read is dropped, as signals are.
        os.set_blocking(held[SIGNALS], False)
        os.setsid()
        what = f"the network namespace {netns or 'of its own'}"
        _enter(netns)
        what = f"the directory {directory}"
        os.chdir(directory)
        for number, fd in enumerate(held):
            os.dup2(fd, number)
        if terminal:
            import termios

            what = "its terminal"
            fcntl.ioctl(STDIN, termios.TIOCSCTTY, 0)
        os.closerange(len(held), told)
        os.closerange(told + 1, _MOST)
        what = _SHELL
        for number in _HEARD:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve(_SHELL, [_SHELL, "-c", _SCRIPT, "orlop-oci"], {})
    except BaseException as error:
        os.write(told, f"{what}: {getattr(error, 'strerror', None) or error}".encode())
    os._exit(_CODE_LOST)


def _aside(fd: int) -> int:
    """A copy above those that it will have."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _SPARE)


def _both_ways() -> int:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    both = os.open(f"/proc/self/fd/{reading}", os.O_RDWR | os.O_CLOEXEC)
    os.close(reading)
    os.close(writing)
    return both


def _enter(netns: str) -> None:
    calls: Any = os
    if sys.version_info < (3, 12):
        from orlop.linux import syscalls as calls
    if not netns:
        calls.unshare(_NEW_NETWORK)
        return
    descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        calls.setns(descriptor, _NEW_NETWORK)
    finally:
        os.close(descriptor)
