"""One container of a VM: its streams, its log, its exit."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping

import msgspec

from orlop.errors import FailedPrecondition, Unavailable
from orlop.host import threads
from orlop.sandbox.crilog import STDERR, STDOUT, CriLog, settled_since
from orlop.sandbox.rawoutput import RawOutput, output_of, written_since
from orlop.sandbox.spec import ContainerSpec, ExecSpec, ExitStatus, UserIds
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.files import ContainerFile
from orlop.sandbox.vm.output import Output
from orlop.sandbox.vm.process import GuestAttachment, GuestExec
from orlop.sandbox.vm.streams import Incoming, Outgoing
from orlop.wire import values as wire
from orlop.wire.hello import EXEC_AS, FREEZE
from orlop.wire.messages import Exec, Freeze, Resize

CODE_KILLED = 137
_DRAIN_TIME = 2.0
_FREEZE_TIME = 30.0


class VmContainer:
    """A container that was made, or found again. Made by :meth:`fresh` or :meth:`found`."""

    def __init__(self, spec: ContainerSpec, agent: AgentClient, held: ContainerFile) -> None:
        self.spec = spec
        self.held = held
        """What its file says that it holds of the host: disks, shares, streams, the place in its log."""
        self.log = output_of(spec.sink)
        self.running = False
        self.oom = False
        self.ending = False
        self.changing = asyncio.Lock()
        """Held while it is made, started or removed: what one step plugs, another must not pull out."""
        self.cpuset = spec.resources.cpuset_cpus
        self.memory_limit = spec.resources.memory_limit
        self.exited: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._agent = agent
        self._wake = asyncio.Event()
        self._incoming: dict[int, Incoming] = {}
        self._stdin: Outgoing | None = None
        self._output: Output | None = None

    @classmethod
    def fresh(cls, spec: ContainerSpec, agent: AgentClient, plan: ContainerFile) -> VmContainer:
        """A container about to be created; its streams are new ones."""
        container = cls(spec, agent, plan)
        container._incoming = {STDOUT: agent.incoming(agent.new_stream(), wake=container._wake)}
        if not spec.tty:
            container._incoming[STDERR] = agent.incoming(agent.new_stream(), wake=container._wake)
        if spec.stdin:
            container._stdin = agent.outgoing(agent.new_stream())
        return container

    @classmethod
    async def found(
        cls,
        spec: ContainerSpec,
        agent: AgentClient,
        held: ContainerFile,
        state: wire.ContainerState,
        offsets: Mapping[int, wire.StreamOffsets],
    ) -> VmContainer:
        """A container that an earlier daemon made. What is in its log already is not asked for again."""
        settled = (0, 0)
        if held.log is not None:
            settled = await threads.call(settled_since, spec.sink.log, held.log)
        elif held.raw:
            settled = await threads.call(written_since, held.raw, spec.sink)
        container = cls(spec, agent, held)
        for number, stream in ((STDOUT, state.streams.stdout), (STDERR, state.streams.stderr)):
            if stream and stream in offsets:
                kept = offsets[stream]
                # Whatever was counted in a file that others may write to: never ask beyond what there is.
                offset = min(max(settled[number - 1], kept.acked), kept.written)
                container.log.resume(number, offset)
                container._incoming[number] = agent.incoming(stream, offset=offset, wake=container._wake)
        stdin = state.streams.stdin
        if stdin and stdin in offsets and not offsets[stdin].ended:
            container._stdin = agent.outgoing(stdin, offset=offsets[stdin].received)
        container.running = state.status == "running"
        return container

    @property
    def streams(self) -> wire.Streams:
        """The ids of its streams, for the agent."""
        numbers = {number: stream.stream for number, stream in self._incoming.items()}
        return wire.Streams(
            stdin=self._stdin.stream if self._stdin is not None else 0,
            stdout=numbers.get(STDOUT, 0),
            stderr=numbers.get(STDERR, 0),
        )

    @property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """Its streams and where each goes on, for Resume."""
        pairs = [(stream.stream, stream.offset) for stream in self._incoming.values()]
        if self._stdin is not None:
            pairs.append((self._stdin.stream, 0))
        return tuple(pairs)

    def pump(self) -> None:
        """Begin to move output into the log, which is open."""
        self._output = Output(self.spec.id, self.log, self._incoming, self._wake)
        self._output.start()

    async def finish(self, exit_status: wire.Exit, at: int) -> None:
        """Its first process ended ``at`` (ns, host's clock): once its output is in the log, that is known."""
        if self._output is not None:
            try:
                async with asyncio.timeout(_DRAIN_TIME):
                    await self._output.ended.wait()
            except TimeoutError:
                pass  # an attached client that does not read holds it up
        self.running = False
        self._end_with(
            ExitStatus(
                code=exit_status.code,
                finished_at=at,
                oom_killed=exit_status.oom_killed or (self.oom and exit_status.code != 0),
            )
        )

    def lost(self, reason: str) -> None:
        """It died with its VM, or nobody knows how. Idempotent."""
        self.running = False
        self._end_with(ExitStatus(code=CODE_KILLED, finished_at=time.time_ns(), message=reason))

    async def reopen_log(self) -> ContainerFile:
        """Begin a new log file; returns what to remember of it."""
        if self._output is not None and not self._output.ended.is_set():
            await self._output.reopen()
        return await self.remember_log()

    async def remember_log(self) -> ContainerFile:
        """What a later daemon must know to count what is in the log."""
        raw = await self.log.marks() if isinstance(self.log, RawOutput) else ()
        position = await self.log.position() if isinstance(self.log, CriLog) else None
        streams = self.streams
        self.held = msgspec.structs.replace(
            self.held,
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            log=position,
            raw=raw,
        )
        return self.held

    def attach(self, *, stdin: bool) -> GuestAttachment:
        """Join its streams."""
        if self._output is None:
            raise Unavailable(f"container {self.spec.id} has no output to attach to")
        return GuestAttachment(
            self._output,
            stdin=self._stdin if stdin else None,
            stdin_once=self.spec.stdin_once,
            resize=self._resize,
            wait=self.wait,
        )

    async def freeze(self, *, frozen: bool) -> None:
        """Have the guest stop its processes, or let them go on. Raises FailedPrecondition, Unavailable."""
        if FREEZE not in self._agent.hello.features:
            raise FailedPrecondition(
                "the guest is of an earlier version, which pauses no containers; build the guest image anew "
                "and make the pod again"
            )
        await self._agent.call(Freeze(id=self.spec.id, frozen=frozen), _FREEZE_TIME)

    async def wait(self) -> ExitStatus:
        """Its exit."""
        return await asyncio.shield(self.exited)

    async def close(self) -> None:
        """Stop pumping and let go of the streams; what is not in the log stays with the guest."""
        if self._output is not None:
            await self._output.stop()
        else:
            await self.log.close()

    async def drop(self) -> None:
        """As :meth:`close`, and nobody will ask for the rest."""
        await self.close()
        for stream in self._incoming.values():
            stream.close()
        if self._stdin is not None:
            self._stdin.close()

    def _end_with(self, status: ExitStatus) -> None:
        if not self.exited.done():
            self.exited.set_result(status)

    async def _resize(self, width: int, height: int) -> None:
        await self._agent.call(Resize(id=self.spec.id, width=width, height=height))


def _user(user: UserIds) -> wire.ExecUser:
    return wire.ExecUser(uid=user.uid, gid=user.gid, groups=user.groups)


class GuestExecs:
    """The processes that were started by Exec and whose exit somebody waits for."""

    def __init__(self, agent: AgentClient) -> None:
        self._agent = agent
        self._exits: dict[str, asyncio.Future[ExitStatus]] = {}

    async def start(self, container_id: str, spec: ExecSpec) -> GuestExec:
        """Start one. Raises InvalidArgument when there is no such program."""
        agent = self._agent
        if (spec.env or spec.cwd or spec.user is not None) and EXEC_AS not in agent.hello.features:
            raise FailedPrecondition(
                "the guest is of an earlier version, which runs commands with the container's environment "
                "and user only; build the guest image anew and make the container again"
            )
        exec_id = secrets.token_hex(8)
        wake = asyncio.Event()
        output = {STDOUT: agent.incoming(agent.new_stream(), wake=wake)}
        if not spec.tty:
            output[STDERR] = agent.incoming(agent.new_stream(), wake=wake)
        stdin = agent.outgoing(agent.new_stream()) if spec.stdin else None
        exited: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._exits[exec_id] = exited
        process = GuestExec(
            agent,
            container_id,
            exec_id,
            stdin=stdin,
            output=output,
            wake=wake,
            exited=exited,
            tty=spec.tty,
            forget=lambda: self._forget(exec_id),
        )
        try:
            await agent.call(
                Exec(
                    id=exec_id,
                    container_id=container_id,
                    args=spec.args,
                    tty=spec.tty,
                    env=spec.env,
                    cwd=spec.cwd,
                    user=None if spec.user is None else _user(spec.user),
                    streams=wire.Streams(
                        stdin=stdin.stream if stdin is not None else 0,
                        stdout=output[STDOUT].stream,
                        stderr=output[STDERR].stream if STDERR in output else 0,
                    ),
                )
            )
            if spec.width and spec.height:
                await process.resize(spec.width, spec.height)
        except BaseException:
            await process.close()
            raise
        return process

    def exited(self, exec_id: str, exit_status: wire.Exit) -> None:
        """The agent says that one has ended."""
        future = self._exits.get(exec_id)
        if future is not None and not future.done():
            future.set_result(
                ExitStatus(
                    code=exit_status.code,
                    finished_at=time.time_ns(),
                    oom_killed=exit_status.oom_killed,
                )
            )

    def lost(self, reason: str) -> None:
        """The VM is gone, and all of them with it."""
        for future in self._exits.values():
            if not future.done():
                future.set_result(ExitStatus(code=CODE_KILLED, finished_at=time.time_ns(), message=reason))

    def _forget(self, exec_id: str) -> None:
        self._exits.pop(exec_id, None)
