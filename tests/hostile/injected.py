"""System calls made from inside a running process: what code could do that has taken it over.

``python -m tests.hostile.injected PID``, with [[NUMBER, ARGUMENT...]...] on standard input, has that
process make each call on its first thread, and prints what each returned, as JSON. An argument is a number,
or text: bytes in hexadecimal, which are put into its memory and passed by their address. "killed" stands
for a process that the call ended; nothing comes after it. x86-64 only (ptrace(2)).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

from orlop.host import process

Call = list[int | str]

_SEIZE, _INTERRUPT, _SYSCALL, _GETREGS, _SETREGS, _DETACH = 0x4206, 0x4207, 24, 12, 13, 17
_OPTIONS = 0x1 | 0x2 | 0x8 | 0x100000  # TRACESYSGOOD, TRACEFORK, TRACECLONE, EXITKILL
_AT_CALL = signal.SIGTRAP | 0x80
_INSTRUCTION = b"\x0f\x05"
_NAMES = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_RESTART = range(-516, -511)
_EINTR = -4
_SCHED_YIELD = 24


async def inject(pid: int, *calls: Call) -> list[int | str]:
    """See the module."""
    argv = [sys.executable, "-m", "tests.hostile.injected", str(pid)]
    done = await process.run(argv, input=json.dumps(calls).encode(), cwd=Path(__file__).parents[2])
    found: list[int | str] = json.loads(done.stdout)
    return found


class _Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in _NAMES]


class _Killed(Exception):
    pass


class _Thread:
    """A thread that stands still, just behind a system call that it was waiting in."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        self._ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
        self._request(_SEIZE, data=_OPTIONS)
        while True:
            self._request(_INTERRUPT)
            os.waitpid(pid, 0)
            self._before = self._registers()
            if os.pread(self._memory, 2, self._before.rip - 2) == _INSTRUCTION:
                break
            self._request(_DETACH)
            time.sleep(0.01)
            self._request(_SEIZE, data=_OPTIONS)

    def call(self, number: int, *arguments: int | str) -> int:
        """What the call returned. Raises _Killed."""
        result = self._do(number, *arguments)
        # A call that kills comes to its end first.
        self._do(_SCHED_YIELD)
        return result

    def _do(self, number: int, *arguments: int | str) -> int:
        room = (self._before.rsp - 4096) & ~15
        values = {"rax": number, "orig_rax": -1, "rip": self._before.rip - 2}
        for name, argument in zip(_ARGUMENTS, arguments, strict=False):
            if isinstance(argument, str):
                data = bytes.fromhex(argument)
                room -= (len(data) + 15) & ~15
                os.pwrite(self._memory, data, room)
                values[name] = room
            else:
                values[name] = argument
        registers = _Registers.from_buffer_copy(self._before)
        for name, value in values.items():
            setattr(registers, name, value)
        self._request(_SETREGS, data=ctypes.addressof(registers))
        for _ in ("entry", "exit"):
            self._go_on()
        return ctypes.c_longlong(self._registers().rax).value

    def leave(self) -> None:
        """Let it go on as if it had been interrupted by a signal."""
        if ctypes.c_longlong(self._before.rax).value in _RESTART:
            self._before.rax = _EINTR
            self._before.orig_rax = -1
        self._request(_SETREGS, data=ctypes.addressof(self._before))
        self._request(_DETACH)

    def _go_on(self) -> None:
        passed = 0
        while True:
            self._request(_SYSCALL, data=passed)
            _, status = os.waitpid(self._pid, 0)
            if not os.WIFSTOPPED(status):
                raise _Killed
            passed = os.WSTOPSIG(status)
            if passed == _AT_CALL:
                return
            if status >> 16:  # an event of ptrace's own
                passed = 0

    def _registers(self) -> _Registers:
        found = _Registers()
        self._request(_GETREGS, data=ctypes.addressof(found))
        return found

    def _request(self, what: int, *, data: int = 0) -> None:
        if self._ptrace(what, self._pid, None, data) < 0:
            raise OSError(ctypes.get_errno(), f"ptrace request {what:#x}")


def main() -> None:
    """See the module."""
    thread = _Thread(int(sys.argv[1]))
    found: list[int | str] = []
    try:
        for number, *arguments in json.load(sys.stdin):
            found.append(thread.call(number, *arguments))
        thread.leave()
    except _Killed:
        found.append("killed")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
