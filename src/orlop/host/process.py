"""Child processes: the one door through which anything is run.

:func:`run` is for a tool that ends soon, :func:`spawn` for a child with pipes,
:func:`spawn_detached` for one that outlives the daemon (a VM). Such a child is found again by its
pid *and* its start time, so that a reused pid is never taken for it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process, SubprocessStreamProtocol
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec

from orlop.errors import Code, DeadlineExceeded, NotFound, OrlopError, ResourceExhausted, Unavailable
from orlop.host import tasks, threads
from orlop.linux import syscalls

log = logging.getLogger(__name__)

Argument = str | os.PathLike[str]
Stream = int | IO[bytes] | None

_CHUNK = 1 << 16
_STDERR_SHOWN = 600
_REAP_TIME = 10.0
_GROUP_POLL = 0.002


class Completed(msgspec.Struct, frozen=True):
    """A child that ended; ``returncode`` is negative for a death by signal."""

    returncode: int
    stdout: bytes
    stderr: bytes


class ProcessFailed(OrlopError):
    """A child ended with a status other than 0."""

    code = Code.INTERNAL

    def __init__(self, program: str, returncode: int, stderr: str) -> None:
        how = f"exit status {returncode}" if returncode >= 0 else f"signal {-returncode}"
        shown = stderr.strip()[-_STDERR_SHOWN:]
        super().__init__(f"{program} failed with {how}" + (f": {shown}" if shown else ""))
        self.program = program
        self.returncode = returncode
        self.stderr = stderr


class Child(Process):
    """A child of :func:`spawn`, which its owner ends with :func:`reap`."""

    def __init__(
        self,
        transport: asyncio.SubprocessTransport,
        protocol: SubprocessStreamProtocol,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, loop)
        self.group_killed = False
        self._pipes = [
            pipe for number in range(3) if (pipe := transport.get_pipe_transport(number)) is not None
        ]

    def close_pipes(self) -> None:
        """Let go of our ends, whether what came was read or not, and whoever holds the others."""
        for pipe in self._pipes:
            if not isinstance(pipe, asyncio.WriteTransport):
                pipe.close()
            elif pipe.get_write_buffer_size() or not pipe.is_closing():
                pipe.abort()  # closed, it would wait until someone reads what it holds


def _watch_by_pidfd() -> None:
    """Python 3.11 waits for each child on a thread of its own unless told otherwise; 3.12 uses pidfd."""
    if sys.version_info >= (3, 12):
        return
    watcher = asyncio.get_child_watcher()
    if isinstance(watcher, asyncio.PidfdChildWatcher) and watcher.is_active():
        return
    with suppress(OSError):  # a kernel before 5.3, or a sandbox that forbids the call
        os.close(os.pidfd_open(os.getpid()))
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)


async def spawn(
    argv: Sequence[Argument],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Argument | None = None,
    stdin: Stream = DEVNULL,
    stdout: Stream = DEVNULL,
    stderr: Stream = DEVNULL,
    pass_fds: Sequence[int] = (),
    new_session: bool = True,
    program: Argument | None = None,
) -> Child:
    """Start a child and return at once. The caller owns it; the end of the event loop kills it.

    ``env`` replaces the environment; ``program`` is the file where the first of ``argv`` is but a name.
    A cancellation while it starts kills its group. Raises NotFound when there is no such program.
    """
    arguments = [os.fspath(argument) for argument in argv]
    _watch_by_pidfd()
    loop = asyncio.get_running_loop()

    async def start() -> Child:
        transport, protocol = await loop.subprocess_exec(
            lambda: SubprocessStreamProtocol(limit=_CHUNK, loop=loop),
            *arguments,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=new_session,
            executable=program,
        )
        return Child(transport, protocol, loop)

    try:
        # Cancelled in there, asyncio would kill the child alone, and wait for those that hold its pipes.
        return await tasks.wanted_or_undone(f"the child {arguments[0]}", start(), reap)
    except OSError as error:
        raise _not_started(os.fspath(program or arguments[0]), cwd, error) from error


class Detached:
    """A child that outlives the daemon: nothing here kills it when it is dropped or the loop ends."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.pid = child.pid
        self.start_time = process_start_time(child.pid)

    @property
    def returncode(self) -> int | None:
        """The exit status once it is known (negative for a death by signal)."""
        return self._child.poll()

    async def wait(self) -> int:
        """Wait for the child's end and reap it; answers any number of times."""
        while (status := self._child.poll()) is None:
            await wait_pid(self.pid)
        return status


def popen(argv: Sequence[Argument], cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a child without streams from the calling thread, for :class:`Detached`. Raises OSError."""
    return subprocess.Popen(
        [os.fspath(argument) for argument in argv],
        cwd=cwd,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
        start_new_session=True,
    )


def set_oom_score(pid: int, adjustment: int) -> None:
    """How soon the kernel kills a process that is short of memory: -1000 (never) to 1000.

    One that has ended, or a value that this process may not give, is passed over.
    """
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(adjustment), encoding="ascii")


async def spawn_detached(
    argv: Sequence[Argument],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Argument | None = None,
    stdin: Stream = DEVNULL,
    stdout: Stream = DEVNULL,
    stderr: Stream = DEVNULL,
    pass_fds: Sequence[int] = (),
    new_session: bool = True,
    pid_namespace: bool = False,
) -> Detached:
    """:func:`spawn` for a child that must outlive the daemon; the same arguments, without pipes.

    With ``pid_namespace`` it is the first process of a new one. A cancellation while it starts
    kills it. Raises as :func:`spawn` does.
    """
    arguments = [os.fspath(argument) for argument in argv]

    def start() -> subprocess.Popen[bytes]:
        if pid_namespace:
            syscalls.unshare(syscalls.CLONE_NEWPID)  # for the children of this thread
        return subprocess.Popen(
            arguments,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=new_session,
        )

    try:
        call = threads.in_own_thread if pid_namespace else threads.call
        return Detached(await tasks.uncancelled(call(start), unwanted=_end))
    except OSError as error:
        raise _not_started(arguments[0], cwd, error) from error


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


def _not_started(program: str, cwd: Argument | None, error: OSError) -> OrlopError:
    if not isinstance(error, FileNotFoundError):
        return ProcessFailed(program, 126, f"cannot be started: {error.strerror}")
    if cwd is not None and not Path(cwd).is_dir():
        return NotFound(f"{program} cannot start in {cwd}: no such directory")
    return NotFound(f"{program} is not installed, or not in PATH")


async def run(
    argv: Sequence[Argument],
    *,
    input: bytes | None = None,  # noqa: A002 - the name subprocess uses
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    cwd: Argument | None = None,
    check: bool = True,
    output_limit: int = 4 << 20,
    pass_fds: Sequence[int] = (),
    program: Argument | None = None,
) -> Completed:
    """Run a tool to its end and return what it wrote; ``program`` as for :func:`spawn`.

    Raises ProcessFailed for a status other than 0 (unless ``check`` is false), NotFound when
    there is no such program, DeadlineExceeded after ``timeout`` seconds, ResourceExhausted when
    it writes more than ``output_limit`` bytes to one stream. In every case, cancellation
    included, its whole process group is dead and reaped before this returns.
    """
    child = await spawn(
        argv,
        env=env,
        cwd=cwd,
        stdin=DEVNULL if input is None else PIPE,
        stdout=PIPE,
        stderr=PIPE,
        pass_fds=pass_fds,
        program=program,
    )
    program = os.fspath(program or argv[0])
    try:
        async with asyncio.timeout(timeout):
            stdout, stderr = await _communicate(child, input, output_limit)
            returncode = await child.wait()
    except TimeoutError as error:
        _kill_group(child)
        raise DeadlineExceeded(f"{program} did not end within {timeout:g} seconds and was killed") from error
    except _TooMuch as error:
        _kill_group(child)
        raise ResourceExhausted(f"{program} wrote more than {output_limit} bytes and was killed") from error
    except asyncio.CancelledError:
        _kill_group(child)
        raise
    finally:
        await reap(child)
    if check and returncode != 0:
        raise ProcessFailed(program, returncode, stderr.decode(errors="replace"))
    return Completed(returncode, stdout, stderr)


class _TooMuch(Exception):
    pass


async def _communicate(child: Child, data: bytes | None, limit: int) -> tuple[bytes, bytes]:
    assert child.stdout is not None and child.stderr is not None
    stdout, stderr, _ = await tasks.together(
        _collect(child.stdout, limit), _collect(child.stderr, limit), _feed(child.stdin, data or b"")
    )
    return stdout, stderr


async def _feed(stdin: asyncio.StreamWriter | None, data: bytes) -> None:
    if stdin is None:
        return
    with suppress(BrokenPipeError, ConnectionResetError):
        stdin.write(data)
        await stdin.drain()
    stdin.close()


async def _collect(stream: asyncio.StreamReader, limit: int) -> bytes:
    parts = bytearray()
    while chunk := await stream.read(_CHUNK):
        parts += chunk
        if len(parts) > limit:
            raise _TooMuch
    return bytes(parts)


def _kill_group(child: Child) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
        child.group_killed = True


def _group_runs(group: int) -> bool:
    """Whether a process of the group can still do anything; zombies cannot, whoever has to reap them."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                text = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                state, _, owner = text.rpartition(")")[2].split()[:3]
                if int(owner) == group and state not in ("Z", "X"):
                    return True
    return False


def signal_child(child: Child, number: int) -> None:
    """Send a signal to a child of :func:`spawn` that has not ended.

    asyncio's own way polls first, and takes the exit status away from the one who waits for it.
    """
    if child.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(child.pid, number)


async def reap(child: Child) -> None:
    """Kill the child's process group if the child still runs and wait for it, even when cancelled.

    What it wrote and nobody has read is dropped. Idempotent.
    """
    if child.returncode is None:
        _kill_group(child)
        signal_child(child, signal.SIGKILL)
    # asyncio knows of an end only when all pipes are closed as well: not while output waits that nobody
    # reads, nor while a process that has left the group holds one open.
    child.close_pipes()
    await tasks.uncancelled(_ended(child))


async def _ended(child: Child) -> None:
    try:
        async with asyncio.timeout(_REAP_TIME):
            await child.wait()
            if child.group_killed:
                # What its children were doing when they were killed may end after it: an undo waits for that.
                while await threads.call(_group_runs, child.pid):  # noqa: ASYNC110 - they are not ours to wait for
                    await asyncio.sleep(_GROUP_POLL)
    except TimeoutError:
        # The kernel holds it (a dead disk, say); whoever waits for us is not to wait for that.
        log.error("process %d was killed and does not end", child.pid)


def process_start_time(pid: int) -> int:
    """The start time of a process in clock ticks since boot (proc_pid_stat(5)); 0 if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text.rpartition(")")[2].split()[19])


def pid_alive(pid: int, start_time: int) -> bool:
    """Whether that very process still runs; a zombie does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    fields = text.rpartition(")")[2].split()
    return int(fields[19]) == start_time and fields[0] not in ("Z", "X")


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            return None
        raise


async def wait_pid(pid: int) -> None:
    """Return when the process has ended; it need not be a child of ours. At once if there is none."""
    descriptor = _open_pidfd(pid)
    if descriptor is not None:
        try:
            await readable(descriptor)
        finally:
            os.close(descriptor)


async def readable(descriptor: int) -> None:
    """Return when the descriptor can be read, or is at its end."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def on_ready() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(descriptor, on_ready)
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)


def working_in(directory: Path) -> list[int]:
    """The processes whose working directory is ``directory``: a mark that outlives who made it."""
    wanted = os.fspath(directory)
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                if os.fspath(Path(entry.path, "cwd").readlink()) == wanted:
                    found.append(int(entry.name))
    return found


def send_signal(pid: int, start_time: int, number: int) -> bool:
    """Send a signal to that very process; false when it has ended. Raises OSError."""
    descriptor = _open_pidfd(pid)
    if descriptor is None:
        return False
    try:
        if not pid_alive(pid, start_time):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


async def kill_pid(pid: int, start_time: int, grace: float = 0) -> None:
    """End that very process: TERM and ``grace`` seconds when ``grace`` is given, then KILL.

    Returns when it has ended. Idempotent; a process with another start time is left alone. Raises
    Unavailable when the kernel does not let go of a killed process for long.
    """
    descriptor = _open_pidfd(pid)
    if descriptor is None:
        return
    try:
        # Checked after the open: the descriptor cannot change its meaning any more.
        if not pid_alive(pid, start_time):
            return
        with suppress(ProcessLookupError):
            if grace > 0:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
                with suppress(TimeoutError):
                    async with asyncio.timeout(grace):
                        await readable(descriptor)
                        return
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            await tasks.uncancelled(_killed(pid, descriptor))
    finally:
        os.close(descriptor)


async def _killed(pid: int, descriptor: int) -> None:
    try:
        async with asyncio.timeout(_REAP_TIME):
            await readable(descriptor)
    except TimeoutError as error:
        raise Unavailable(
            f"process {pid} was killed and has not ended within {_REAP_TIME:g} seconds"
        ) from error
