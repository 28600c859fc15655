"""conmon: one small process per container that holds its streams, writes its log and tells its exit.

It outlives the daemon. It is spoken to by its command line, a pipe on which it says how the
start went, a FIFO for orders (``ctl``), a socket for attached clients, and a file with the exit code.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from asyncio.subprocess import DEVNULL
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orlop.errors import Internal, NotFound
from orlop.host import process, tasks, threads
from orlop.sandbox.process.layout import ContainerPaths, KnownProcess
from orlop.sandbox.process.runtime import Runtime, last_error, refusal
from orlop.sandbox.rawoutput import open_raw
from orlop.sandbox.spec import ContainerSpec
from orlop.value import UNREADABLE

_CREATE_TIME = 120.0
_MESSAGE_LIMIT = 1 << 16
_RESIZE, _REOPEN = 1, 2


class _Report(msgspec.Struct):
    data: int = 0
    message: str = ""


@dataclass(frozen=True)
class Started:
    """A created container: its first process and the monitor."""

    init: KnownProcess
    monitor: KnownProcess


def direct(spec: ContainerSpec) -> bool:
    """Whether the container writes to its files itself; nobody can attach to it then."""
    return spec.sink.raw and not spec.tty and not spec.stdin


def _log_option(spec: ContainerSpec) -> str:
    if direct(spec):
        return "passthrough:"
    return f"k8s-file:{spec.sink.log}" if spec.sink.log else "none:"


def command(
    program: str, runtime: Runtime, container_id: str, paths: ContainerPaths, spec: ContainerSpec
) -> list[str]:
    """conmon's command line."""
    bundle = paths.bundle
    found = [program, "--api-version", "1", "--full-attach", "--no-sync-log"]
    found += ["--cid", container_id, "--cuuid", container_id, "--name", container_id[:12]]
    found += ["--bundle", str(bundle), "--persist-dir", str(bundle)]
    found += ["--exit-dir", str(paths.exit_file.parent)]
    found += ["--container-pidfile", str(bundle / "init.pid"), "--conmon-pidfile", str(bundle / "conmon.pid")]
    found += ["--log-path", _log_option(spec)]
    found += ["--runtime", runtime.program]
    for option in runtime.options(bundle / "runtime.log"):
        if option != "--systemd-cgroup":
            found += ["--runtime-arg", option]
    if runtime.systemd:
        found.append("--systemd-cgroup")
    if spec.tty:
        found.append("--terminal")
    if spec.stdin:
        found.append("--stdin")
        if not spec.stdin_once:
            found.append("--leave-stdin-open")
    return found


async def create(
    program: str, runtime: Runtime, container_id: str, paths: ContainerPaths, spec: ContainerSpec
) -> Started:
    """Create the container of the bundle under a monitor of its own.

    Raises FailedPrecondition with the runtime's reason, or CannotRun. The caller removes what is
    left then, and after a cancellation.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    files = ExitStack()
    try:
        outputs = await threads.call(_open_outputs, spec, files)
        environment = {"PATH": os.environ.get("PATH", ""), "_OCI_SYNCPIPE": str(writing)}
        if bus := os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
            environment["DBUS_SESSION_BUS_ADDRESS"] = bus
        child = await process.spawn_detached(
            command(program, runtime, container_id, paths, spec),
            env=environment,
            cwd=paths.bundle,
            stdout=outputs[0],
            stderr=outputs[1],
            pass_fds=(writing,),
        )
        os.close(writing)
        writing = -1
        # It puts itself into the background at once, and writes its pid first: only then can it be found.
        status = await tasks.uncancelled(child.wait())
        report = await _read_report(reading)
    finally:
        files.close()
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    if report is None or report.data <= 0:
        said = report.message if report is not None else f"conmon ended with status {status}"
        reason = last_error(paths.bundle / "runtime.log") or said.strip() or "no reason given"
        raise refusal(f"container {spec.name} cannot be created", reason)
    return Started(init=identify(report.data), monitor=identify(read_pid(paths.bundle / "conmon.pid")))


def _open_outputs(spec: ContainerSpec, files: ExitStack) -> tuple[int, int]:
    """conmon's own stdout and stderr, which are the container's if it writes to its files itself."""
    found = [DEVNULL, DEVNULL]
    if direct(spec):
        for number, (name, path) in enumerate((("stdout", spec.sink.stdout), ("stderr", spec.sink.stderr))):
            if path:
                found[number] = open_raw(path, name)
                files.callback(os.close, found[number])
    return found[0], found[1]


async def _read_report(descriptor: int) -> _Report | None:
    """The one line that conmon writes when the runtime has created the container, or failed to."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_MESSAGE_LIMIT)
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(descriptor), "rb", buffering=0)
    )
    try:
        async with asyncio.timeout(_CREATE_TIME):
            line = await reader.readline()
        return msgspec.json.decode(line, type=_Report) if line.strip() else None
    except TimeoutError:
        return _Report(data=-1, message=f"the runtime did not answer within {_CREATE_TIME:g} seconds")
    except (ValueError, *UNREADABLE) as error:
        return _Report(data=-1, message=f"conmon's answer is not understood: {error}")
    finally:
        transport.close()


def identify(pid: int) -> KnownProcess:
    """A process by its pid, now."""
    return KnownProcess(pid=pid, start_time=process.process_start_time(pid)) if pid > 0 else KnownProcess()


def read_pid(path: Path) -> int:
    """The pid in a file, or 0."""
    try:
        return int(path.read_text(encoding="ascii").strip() or "0")
    except (OSError, ValueError):
        return 0


def leftover(bundle: Path) -> KnownProcess:
    """The monitor of a container of which no more than the pid file is known; none if it has ended."""
    pid = read_pid(bundle / "conmon.pid")
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return KnownProcess()
    return identify(pid) if os.fsencode(bundle.name) in arguments else KnownProcess()


def exit_code(path: Path) -> tuple[int, int] | None:
    """Exit code and time (ns) that conmon wrote, or None while there is none."""
    try:
        text = path.read_text(encoding="ascii").strip()
        return (int(text), path.stat().st_mtime_ns) if text else None
    except (OSError, ValueError):
        return None


def oom_seen(bundle: Path) -> bool:
    """Whether conmon saw the container's memory run out."""
    return (bundle / "oom").exists()


def resize(bundle: Path, width: int, height: int) -> None:
    """Set the size of the container's terminal. Nothing happens when the monitor is gone."""
    _order(bundle, f"{_RESIZE} {height} {width}\n")


def writes_to(monitor: int, path: Path) -> bool:
    """Whether the file at ``path`` is one that the monitor has open."""
    try:
        named = path.stat()
        opened = [entry.stat() for entry in Path(f"/proc/{monitor}/fd").iterdir()]
    except OSError:
        return False
    return any(os.path.samestat(named, status) for status in opened)


def reopen_log(bundle: Path) -> None:
    """Make a new log file, in the place of one that is there. Raises NotFound when the monitor is gone."""
    if not _order(bundle, f"{_REOPEN} 0 0\n"):
        raise NotFound(f"the monitor of {bundle.name[:12]} is gone: its log cannot be opened again")


def _order(bundle: Path, line: str) -> bool:
    try:
        descriptor = os.open(bundle / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            return False
        raise
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    return True


async def connect(bundle: Path) -> socket.socket:
    """A connection to the attach socket: packets of a stream number and data come, plain input goes.

    Raises Internal when the monitor does not listen.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The path itself is longer than a socket's address may be.
        await asyncio.get_running_loop().sock_connect(client, f"/proc/self/fd/{directory}/attach")
    except BaseException as error:
        client.close()
        if isinstance(error, OSError):
            raise Internal(f"cannot attach to container {bundle.name[:12]}: {error.strerror}") from error
        raise
    finally:
        os.close(directory)
    return client


async def find(program: str) -> str:
    """The version of conmon. Raises NotFound."""
    done = await process.run([program, "--version"], timeout=10)
    return done.stdout.decode(errors="replace").partition("\n")[0].removeprefix("conmon version").strip()
