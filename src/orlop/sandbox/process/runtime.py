"""The OCI runtime: crun or runc, by its command line (``create start exec update delete``)."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from orlop.config import Config
from orlop.errors import CannotRun, DeadlineExceeded, FailedPrecondition, Internal, NotFound, OrlopError
from orlop.host import cgroups, process, threads
from orlop.sandbox.process.layout import KnownProcess
from orlop.value import UNREADABLE

KNOWN = ("crun", "runc")
_START_TIME = 30.0
_SOON = 1.0


_BAD_PROGRAM = re.compile(r'exec: "|executable file|exec format error|chdir to|open executable')
"""What runc and crun say of a program that cannot be run, or of its working directory."""


_ID = re.compile(r"\b[0-9a-f]{64}\b")


class _LogLine(msgspec.Struct):
    level: str = ""
    msg: str = ""


class _State(msgspec.Struct):
    status: str = ""


@dataclass(frozen=True)
class Runtime:
    """A runtime found on the host. ``state`` is where it keeps what it knows of containers."""

    name: str
    program: str
    version: str
    state: Path
    systemd: bool
    mount_options: frozenset[str] = field(default_factory=frozenset)

    def options(self, log: Path) -> list[str]:
        """Options before the command; errors go to ``log`` as JSON lines."""
        found = [f"--root={self.state}", f"--log={log}", "--log-format=json"]
        return [*found, "--systemd-cgroup"] if self.systemd else found

    def command(self, log: Path, *arguments: str | os.PathLike[str]) -> list[str]:
        """A whole command line."""
        return [self.program, *self.options(log), *(os.fspath(argument) for argument in arguments)]

    async def start(self, container_id: str, init: KnownProcess, log: Path) -> None:
        """Let a created container run, whose first process is ``init``; success as well if an earlier daemon
        did so, and was killed before it could write that down. Raises FailedPrecondition with the reason.

        A container of runc waits for someone to read its FIFO; all that ``runc start`` does is
        to read it, so no process is spent on that.
        """
        fifo = self.state / container_id / "exec.fifo"
        if self.name == "runc" and fifo.exists():
            await _read_fifo(fifo, container_id, init)
            fifo.unlink(missing_ok=True)
            return
        try:
            await process.run(self.command(log, "start", container_id), timeout=_START_TIME)
        except process.ProcessFailed as error:
            if await self._runs(container_id, log):
                return
            reason = last_error(log) or error.stderr.strip()
            raise refusal("the container cannot be started", reason) from error

    async def _runs(self, container_id: str, log: Path) -> bool:
        done = await process.run(self.command(log, "state", container_id), check=False, timeout=_START_TIME)
        try:
            return msgspec.json.decode(done.stdout, type=_State).status == "running"
        except UNREADABLE:
            return False

    async def update(self, container_id: str, resources: dict[str, Any], log: Path) -> None:
        """Change limits; ``resources`` as ``linux.resources`` of the OCI specification."""
        try:
            await process.run(
                self.command(log, "update", "--resources", "-", container_id),
                input=msgspec.json.encode(resources),
            )
        except process.ProcessFailed as error:
            reason = last_error(log) or error.stderr.strip()
            raise FailedPrecondition(
                f"limits of container {container_id[:12]} cannot be changed: {reason}"
            ) from error

    async def delete(self, container_id: str, log: Path) -> None:
        """Forget a container and remove its cgroup; one that still runs is killed. Idempotent."""
        if not (self.state / container_id).exists():
            return
        done = await process.run(
            self.command(log, "delete", "--force", container_id), check=False, timeout=_START_TIME
        )
        if done.returncode != 0 and (self.state / container_id).exists():
            reason = last_error(log) or done.stderr.decode(errors="replace").strip()
            raise Internal(f"{self.name} cannot delete container {container_id[:12]}: {reason}")


def _has_open(pid: int, fifo: Path) -> bool:
    """Whether a process has the FIFO among its files: runc's has it until it becomes the container's program,
    and nobody would ever write to it after that."""
    wanted = fifo.stat()
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):  # closed meanwhile, or one that cannot be looked at
            found = entry.stat()
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False


async def _read_fifo(fifo: Path, container_id: str, init: KnownProcess) -> None:
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    # No writer yet, no event: the container's process opens the other end when it sees this one.
    loop.add_reader(descriptor, wake)
    try:
        async with asyncio.timeout(_START_TIME):
            while not (await asyncio.wait((ready,), timeout=_SOON))[0]:
                if not await threads.call(_has_open, init.pid, fifo):
                    if process.pid_alive(init.pid, init.start_time):
                        return
                    break
        if not ready.done() or not os.read(descriptor, 16):
            raise FailedPrecondition(f"container {container_id[:12]} ended before it could be started")
    except TimeoutError as error:
        raise DeadlineExceeded(f"container {container_id[:12]} does not answer its start") from error
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def refusal(what: str, reason: str) -> OrlopError:
    """The error for what a runtime would not do: CannotRun when the program is to blame."""
    kind = CannotRun if _BAD_PROGRAM.search(reason) else FailedPrecondition
    # Paths with ids of ours say nothing to callers, and make of each try another failure.
    return kind(f"{what}: {_ID.sub('ID', reason)}")


def last_error(log: Path) -> str:
    """The last error in a runtime's log, or ""."""
    try:
        lines = log.read_bytes()[-8192:].splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = msgspec.json.decode(line, type=_LogLine)
        except UNREADABLE:
            continue
        if entry.level in ("error", "fatal") and entry.msg:
            return entry.msg
    return ""


async def find(config: Config, state: Path) -> Runtime:
    """The runtime that is configured, or the best one there is.

    "auto" takes crun, which is several times faster, but runc where the host has control groups
    of version 1: crun refuses hosts that have both versions. Raises NotFound, or FailedPrecondition
    when the one that is configured cannot work here.
    """
    wanted = config.process.runtime
    candidates = _candidates() if wanted == "auto" else (wanted,)
    for candidate in candidates:
        program = shutil.which(candidate)
        if program is not None:
            found = await _describe(program, config, state)
            _check_host(found)
            return found
    raise NotFound(
        f"OCI runtime {' or '.join(candidates)} is not installed; "
        "install one, or name another as process.runtime in the configuration"
    )


def _check_host(found: Runtime) -> None:
    host = cgroups.hierarchy()
    # A wrapper of another name may hide one of the two from it.
    crun = Path(found.program).resolve().name == "crun"
    if crun and host.version == 1 and host.beside is not None:
        raise FailedPrecondition(
            "crun does not work on a host with control groups of both versions: "
            'set process.runtime to "runc" or "auto", or boot with systemd.unified_cgroup_hierarchy=1'
        )


def _candidates() -> Sequence[str]:
    return KNOWN if cgroups.hierarchy().version == 2 else tuple(reversed(KNOWN))


async def _describe(program: str, config: Config, state: Path) -> Runtime:
    about = await process.run([program, "--version"], timeout=10, check=False)
    first = about.stdout.decode(errors="replace").partition("\n")[0].strip()
    name = next((known for known in KNOWN if first.startswith(known)), Path(program).name)
    return Runtime(
        name=name,
        program=program,
        version=first.removeprefix(name).removeprefix(" version").strip(),
        state=state,
        systemd=config.cgroup_driver == "systemd",
        mount_options=await _mount_options(program, name),
    )


async def _mount_options(program: str, name: str) -> frozenset[str]:
    """The mount options that the runtime says it knows (``features`` of the OCI specification)."""
    done = await process.run([program, "features"], timeout=10, check=False)
    try:
        features = msgspec.json.decode(done.stdout, type=dict[str, Any])
    except UNREADABLE:
        # Older ones cannot tell; crun has had recursive attributes since 0.20.
        return frozenset({"rro"}) if name == "crun" else frozenset()
    return frozenset(str(option) for option in features.get("mountOptions", ()))
