"""Scripts of system calls: what a child does between clone and exec, without an interpreter in it.

A child that is forked from Python pays for the copy of its page tables and for every page that it
touches, tens of milliseconds where a VM is emulated. So the child shares the agent's memory (CLONE_VM)
and runs no Python: it walks a chain of *steps*, each of them one system call with its arguments worked
out before, and the last of them is execve. A hundred bytes of machine code are the walker, which
:class:`~orlop.linux.architecture.Architecture` holds; for x86-64 they are::

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
        mov rax, [rbx + 64]     ; a link to another chain?
        test rax, rax
        jnz link
        add rbx, 88
        jmp step
    link:
        mov rbx, rax
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
import sys
from collections.abc import Iterator, Sequence

from orlop.linux import architecture
from orlop.wire.messages import Refused

_OWN = architecture.own()

# Number, six arguments, tolerated errors, link, what to do on failure, result.
_STEP = struct.Struct("=7qQQQq")
_LINK, _RESULT = 64, 80
_PENDING = (1 << 63) - 1

ANY = (1 << 64) - 1
"""Tolerate every error."""

Argument = int | bytes | str


def errors(*numbers: int) -> int:
    """The mask of tolerated errors, for :meth:`Script.add`."""
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask


class _Walker:
    """The machine code, in memory that may be executed."""

    def __init__(self, code: bytes) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._memory.write(code)
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
    if _walker is None:
        if not _OWN.walker:
            raise Refused("internal", f"the agent cannot start processes on {_OWN.machine}")
        _walker = _Walker(_OWN.walker)
    pid = int(_walker.call(arguments, len(arguments), first))
    if pid < 0:
        raise OSError(-pid, f"clone: {os.strerror(-pid)}")
    return pid


def _exit_step() -> ctypes.Array[ctypes.c_char]:
    buffer = (ctypes.c_char * _STEP.size)()
    address = ctypes.addressof(buffer)
    _STEP.pack_into(buffer, 0, _OWN.calls["exit_group"], 127, 0, 0, 0, 0, 0, ANY, address, address, 0)
    return buffer


# Where every child ends that got no further. What it writes there nobody reads.
_EXIT = _exit_step()
_EXIT_ADDRESS = ctypes.addressof(_EXIT)


def _failed(result: int, tolerated: int) -> bool:
    number = -result
    return 0 < number < 4096 and (number > 63 or not tolerated >> number & 1)


class Script:
    """A chain under construction, and afterwards the record of how it went.

    :meth:`add` names what fails when a step does, so that :meth:`problem` can say it. Steps do not
    depend on where they lie, so a script that was made before can be included in others.
    """

    def __init__(self) -> None:
        self._code = bytearray()
        self._reasons: list[tuple[str, str, int]] = []
        self._kept: list[object] = []
        self._labels: dict[str, int] = {}
        self._chains: list[ctypes.Array[ctypes.c_char]] = []
        self._laid = 0
        self._endless = False

    def add(
        self,
        call: str,
        a: Argument = 0,
        b: Argument = 0,
        c: Argument = 0,
        d: Argument = 0,
        e: Argument = 0,
        *,
        tolerate: int = 0,
        what: str = "",
        code: str = "internal",
    ) -> None:
        """Append one step. ``tolerate`` is made by :func:`errors`; bytes and str become pointers."""
        values = [value if type(value) is int else self.pointer(value) for value in (a, b, c, d, e)]  # type: ignore[arg-type]
        self._code += _STEP.pack(_OWN.calls[call], *values, 0, tolerate, 0, _EXIT_ADDRESS, _PENDING)
        self._reasons.append((what or call, code, tolerate))

    def label(self, name: str) -> None:
        """Give the step that comes next a name for :meth:`patch`."""
        self._labels[name] = len(self._reasons)

    def patch(self, name: str, argument: int, value: Argument) -> None:
        """Set an argument of a step that has a label."""
        number = value if isinstance(value, int) else self.pointer(value)
        struct.pack_into("=q", self._code, self._labels[name] * _STEP.size + 8 * (argument + 1), number)

    def include(self, other: Script) -> None:
        """Append the steps of a script that was not laid; it keeps what they point to alive."""
        base = len(self._reasons)
        self._code += other._code
        self._reasons += other._reasons
        self._labels.update((name, base + index) for name, index in other._labels.items())
        self._kept.append(other)

    def pointer(self, value: bytes | str) -> int:
        """The address of ``value`` with a zero byte after it."""
        data = os.fsencode(value) if isinstance(value, str) else value
        self._kept.append(data)
        # Not by ctypes.cast, which is a call of a foreign function each time.
        return int.from_bytes(ctypes.c_char_p(data), sys.byteorder)

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
        self.add(call, tolerate=ANY)
        self._endless = True

    def lay(self) -> int:
        """Lay the steps added since the last time out in memory, linked to those before; their address."""
        start = self._laid * _STEP.size
        size = len(self._code) - start
        chain = ctypes.create_string_buffer(bytes(memoryview(self._code)[start:]), size)
        address = ctypes.addressof(chain)
        after = address + size - _STEP.size if self._endless else _EXIT_ADDRESS
        struct.pack_into("=Q", chain, size - _STEP.size + _LINK, after)
        if self._chains:
            struct.pack_into("=Q", self._chains[-1], len(self._chains[-1]) - _STEP.size + _LINK, address)
        self._chains.append(chain)
        self._laid = len(self._reasons)
        return address

    def problem(self) -> Refused | None:
        """The first step that failed, as a refusal; None when all that ran went well."""
        for result, (what, code, mask) in zip(self._results(), self._reasons, strict=False):
            if result == _PENDING:
                return None
            if _failed(result, mask):
                number = -result
                text = "argument list too long" if number == errno.E2BIG else os.strerror(number).lower()
                return Refused(code, f"{what}: {text}")
        return None

    @property
    def at_end(self) -> bool:
        """Whether the last step was reached, which is the program."""
        results = list(self._results())
        if len(results) < 2 or results[-2] == _PENDING:
            return False
        return not _failed(results[-2], self._reasons[len(results) - 2][2])

    def _results(self) -> Iterator[int]:
        for chain in self._chains:
            for offset in range(0, len(chain), _STEP.size):
                (value,) = struct.unpack_from("=q", chain, offset + _RESULT)
                yield value
