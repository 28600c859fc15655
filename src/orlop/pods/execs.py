"""Further processes in running containers, and connections into pods."""

from __future__ import annotations

import asyncio

from orlop import tracing
from orlop.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable
from orlop.pods.node import Node, in_words
from orlop.sandbox.base import Connection, ProcessIO, StartedProcess
from orlop.sandbox.spec import ExecSpec
from orlop.value import Value

OUTPUT_LIMIT = 8 << 20
"""Bytes of each stream that ExecSync keeps; what a command writes beyond is read and dropped."""


class ExecResult(Value, frozen=True):
    """What an ExecSync brought."""

    stdout: bytes
    stderr: bytes
    exit_code: int


class Execs:
    """The verbs that give streams."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def exec(self, ref: str, spec: ExecSpec) -> StartedProcess:
        """Start a process in a running container; the caller closes what it gets."""
        if not spec.args:
            raise InvalidArgument(f"exec in container {ref}: no command")
        await self._node.known_of(ref)
        record, sandbox = self._node.running(ref)
        if record.paused:
            raise FailedPrecondition(
                f"container {record.name} ({record.id[:12]}) is paused; resume it to run a command"
            )
        failed = f"a command cannot be run in container {record.name} ({record.id[:12]})"
        with tracing.span("sandbox.exec", container=record.id), in_words(failed):
            return await sandbox.exec(record.id, spec)

    async def attach(self, ref: str, *, stdin: bool) -> ProcessIO:
        """Join the streams of a running container; the caller closes what it gets."""
        await self._node.known_of(ref)
        record, sandbox = self._node.running(ref)
        if stdin and not record.spec.stdin:
            raise FailedPrecondition(
                f"container {record.name} ({record.id[:12]}) was created without stdin; attach without it"
            )
        return await sandbox.attach(record.id, stdin=stdin)

    async def connect(self, pod_ref: str, port: int) -> Connection:
        """Connect to a TCP port on a pod's loopback; the caller closes what it gets."""
        if not 0 < port < 65536:
            raise InvalidArgument(f"port {port} of pod {pod_ref} does not exist")
        await self._node.known(pod_ref)
        return await self._node.sandbox(self._node.pod(pod_ref).id).connect(port)

    async def exec_sync(
        self, ref: str, args: tuple[str, ...], timeout: float = 0, *, keep: int = OUTPUT_LIMIT
    ) -> ExecResult:
        """Run a command to its end. DeadlineExceeded after ``timeout`` seconds (0: none): it is killed.

        Of each stream ``keep`` bytes are kept; what comes then is read and dropped.
        """
        what = f"command {args[0]!r} in container {ref[:12]}" if args else f"exec in container {ref}"
        work = self._node.tasks.spawn(self._exec_sync(ref, args, keep), what, awaited=True)
        try:
            await asyncio.wait((work,), timeout=timeout or None)
        finally:
            # Its end is not waited for: a limit holds also when a guest is silent.
            work.cancel()
        if not work.done():
            raise DeadlineExceeded(f"{what} did not end within {timeout:g} s and was killed")
        with in_words(what):
            return work.result()

    async def _exec_sync(self, ref: str, args: tuple[str, ...], keep: int) -> ExecResult:
        process = await self.exec(ref, ExecSpec(args=args))
        kept = {1: bytearray(), 2: bytearray()}
        try:
            async for stream, data in process.output():
                buffer = kept[stream]
                if (room := keep - len(buffer)) > 0:
                    buffer += data[:room]
            status = await process.wait()
        finally:
            await process.close()
        if status.message:
            raise Unavailable(f"command {args[0]!r} in container {ref[:12]} was lost: {status.message}")
        return ExecResult(stdout=bytes(kept[1]), stderr=bytes(kept[2]), exit_code=status.code)
