"""Scripts of system calls: what a child does between clone and exec, without an interpreter in it.

A child that is forked from Python pays for the copy of its page tables and for every page that it
touches, tens of milliseconds where a VM is emulated. So the child shares the agent's memory (CLONE_VM)
and runs no Python: it walks a chain of *steps*, each of them one system call with its arguments worked
out before, and the last of them is execve. Five dozen bytes of machine code are the walker::

        mov eax, 435            ; clone3(rdi = arguments, rsi = their size)
        syscall
        test rax, rax
        jz child
        ret                     ; the agent, with the child's pid
    child:
        mov rbx, rdx            ; rdx = first step
    step:
        mov rax, [rbx]          ; number, then up to six arguments
        mov rdi, [rbx + 8]
        mov rsi, [rbx + 16]
        mov rdx, [rbx + 24]
        mov r10, [rbx + 32]
        mov r8, [rbx + 40]
        mov r9, [rbx + 48]
        syscall
        mov [rbx + 80], rax     ; for the agent to see
        neg rax
        cmp rax, 4095
        ja good
        test rax, rax
        jz good
        cmp rax, 63
        ja failed
        bt [rbx + 56], rax      ; is this errno tolerated here?
        jc good
    failed:
        mov rbx, [rbx + 72]
        jmp step
    good:
        mov rbx, [rbx + 64]
        jmp step

The walker touches neither the stack nor thread-local data, so agent and child do not disturb each other.
A chain may end in a read from the control socket, a *gate*: the agent appends the next chain while the
child waits. Whatever a step points to is kept alive by the script.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterable, Sequence

from orlop.wire.messages import Refused

_WALKER = bytes.fromhex(
    "b8b3010000 0f05 4885c0 7401 c3 4889d3"
    "488b03 488b7b08 488b7310 488b5318 4c8b5320 4c8b4328 4c8b4b30 0f05 48894350"
    "48f7d8 483dff0f0000 7718 4885c0 7413 4883f83f 7707 480fa34338 7206"
    "488b5b48 ebbc 488b5b40 ebb6"
)

_NUMBERS = {
    "read": 0, "write": 1, "open": 2, "close": 3, "rt_sigaction": 13, "ioctl": 16, "pause": 34, "dup3": 292,
    "exit_group": 231, "umask": 95, "chdir": 80, "mkdir": 83, "symlink": 88, "fchown": 93, "chmod": 90,
    "mknod": 133, "setsid": 112, "setgroups": 116, "setresuid": 117, "setresgid": 119, "capset": 126,
    "pivot_root": 155, "prctl": 157, "mount": 165, "umount2": 166, "unshare": 272, "setns": 308,
    "seccomp": 317, "keyctl": 250, "prlimit64": 302, "execve": 59, "close_range": 436, "move_mount": 429,
    "mount_setattr": 442,
}  # fmt: skip

_STEP = struct.Struct("=QQQQQQQQQQq")
_NEXT, _RESULT = 64, 80
_PENDING = (1 << 63) - 1
_ANY_ERRNO = (1 << 64) - 1

Argument = int | bytes | str


class _Walker:
    """The machine code, in memory that may be executed."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._memory.write(_WALKER)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        libc = ctypes.PyDLL(None, use_errno=True)
        if libc.mprotect(
            ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC
        ):
            raise OSError(ctypes.get_errno(), "mprotect")
        kind = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_char_p, ctypes.c_long, ctypes.c_void_p)
        self.call = kind(address)


_walker: _Walker | None = None


def start(arguments: bytes, first: int) -> int:
    """clone3 with ``arguments``; the child walks the chain at ``first``. Returns its pid."""
    global _walker
    if os.uname().machine != "x86_64":
        raise Refused("internal", f"the agent cannot start processes on {os.uname().machine}")
    if _walker is None:
        _walker = _Walker()
    pid = int(_walker.call(arguments, len(arguments), first))
    if pid < 0:
        raise OSError(-pid, f"clone: {os.strerror(-pid)}")
    return pid


class _Chain:
    """Steps that were laid out in memory."""

    def __init__(self, steps: Sequence[tuple[int, ...]], after: int, failed: int) -> None:
        self._buffer = (ctypes.c_char * (_STEP.size * len(steps)))()
        self.address = ctypes.addressof(self._buffer)
        for index, (number, *arguments, tolerated) in enumerate(steps):
            following = self.address + _STEP.size * (index + 1) if index + 1 < len(steps) else after
            _STEP.pack_into(
                self._buffer, _STEP.size * index, number, *arguments, tolerated, following, failed, _PENDING
            )

    def link(self, after: int) -> None:
        """What comes after the last step."""
        struct.pack_into("=Q", self._buffer, len(self._buffer) - _STEP.size + _NEXT, after)

    def result(self, index: int) -> int | None:
        """What a step returned, negative errno; None if it has not."""
        value: int
        (value,) = struct.unpack_from("=q", self._buffer, _STEP.size * index + _RESULT)
        return None if value == _PENDING else value


class Script:
    """A chain under construction, and afterwards the record of how it went.

    :meth:`add` names what fails when a step does, so that :meth:`problem` can say it.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[int, ...]] = []
        self._reasons: list[tuple[str, str, int]] = []
        self._kept: list[object] = []
        self._chains: list[_Chain] = []
        self._laid = 0
        self._endless = False
        self._exit = _Chain([(_NUMBERS["exit_group"], 127, 0, 0, 0, 0, 0, 0)], 0, 0)
        self._exit.link(self._exit.address)

    def add(
        self,
        call: str,
        *arguments: Argument,
        tolerate: Iterable[int] | None = (),
        what: str = "",
        code: str = "internal",
    ) -> None:
        """Append one step. ``tolerate`` None goes on after any error. bytes and str become pointers."""
        mask = _ANY_ERRNO if tolerate is None else 0
        for number in tolerate or ():
            mask |= 1 << number
        values = [argument if isinstance(argument, int) else self.pointer(argument) for argument in arguments]
        values += [0] * (6 - len(values))
        self._steps.append((_NUMBERS[call], *(value & (1 << 64) - 1 for value in values), mask))
        self._reasons.append((what or call, code, mask))

    def pointer(self, value: bytes | str) -> int:
        """The address of a copy of ``value`` with a zero byte after it."""
        data = os.fsencode(value) if isinstance(value, str) else value
        self._kept.append(data)
        address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
        assert address is not None
        return address

    def array(self, values: Sequence[bytes]) -> int:
        """The address of a null-terminated array of pointers, as execve wants it."""
        packed = struct.pack(f"={len(values) + 1}Q", *(self.pointer(value) for value in values), 0)
        return self.pointer(packed)

    def gate(self, fd: int) -> None:
        """Tell the agent that this point is reached, and wait; more steps may be laid meanwhile."""
        self.add("write", fd, b"ready", 5, what="gate")
        buffer = ctypes.create_string_buffer(16)
        self._kept.append(buffer)
        self.add("read", fd, ctypes.addressof(buffer), 8, what="gate")

    def forever(self, call: str) -> None:
        """End with a step that repeats itself."""
        self.add(call, tolerate=None)
        self._endless = True

    def lay(self) -> int:
        """Lay the steps added since the last time out in memory, linked to those before; their address."""
        steps = self._steps[self._laid :]
        chain = _Chain(steps, self._exit.address, self._exit.address)
        if self._endless:
            chain.link(chain.address + _STEP.size * (len(steps) - 1))
        if self._chains:
            self._chains[-1].link(chain.address)
        self._chains.append(chain)
        self._laid = len(self._steps)
        return chain.address

    def problem(self) -> Refused | None:
        """The first step that failed, as a refusal; None when all that ran went well."""
        for step, (what, code, mask) in enumerate(self._reasons[: self._laid]):
            chain, offset = self._place(step)
            result = chain.result(offset)
            if result is None:
                return None
            number = -result
            if 0 < number < 4096 and (number > 63 or not mask >> number & 1):
                text = os.strerror(number).lower() if number != errno.E2BIG else "argument list too long"
                return Refused(code, f"{what}: {text}")
        return None

    @property
    def at_end(self) -> bool:
        """Whether every step but the last one has run: the program was reached."""
        if self._laid < 2:
            return False
        chain, offset = self._place(self._laid - 2)
        return chain.result(offset) is not None

    def _place(self, step: int) -> tuple[_Chain, int]:
        for chain in self._chains:
            count = len(chain._buffer) // _STEP.size
            if step < count:
                return chain, step
            step -= count
        raise IndexError(step)
