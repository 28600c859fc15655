"""A container in a pod, and the commands run in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orlop.client import again, archive, archives, images, logs
from orlop.client.calls import CriClient, NativeClient
from orlop.client.channels import STDOUT, Channels, Read
from orlop.client.facts import ContainerFacts, FileChange, ImageFacts, Result
from orlop.client.images import Progress
from orlop.client.launch import STOP_TIMEOUT
from orlop.client.session import STATES, container_status, name_of
from orlop.client.websocket import CHUNK
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from orlop.host import tasks
from orlop.native.api import native_v1_pb2 as native

MAX_OUTPUT = 64 << 20
"""Bytes of output that a command whose result is waited for may write."""
MAX_FETCHED = 4 << 30
MAX_IN_MEMORY = 8 << 20
MAX_WORDS = 4096
GRACE = 10.0

_CHANGES = {native.Change.CHANGED: "C", native.Change.ADDED: "A", native.Change.DELETED: "D"}


async def collected(output: AsyncIterator[tuple[str, bytes]], remedy: str) -> tuple[bytes, bytes]:
    """All of stdout and of stderr. Beyond 64 MiB of both ResourceExhausted is raised, with ``remedy``."""
    written = {"stdout": bytearray(), "stderr": bytearray()}
    async for stream, data in output:
        written[stream] += data
        if len(written["stdout"]) + len(written["stderr"]) > MAX_OUTPUT:
            raise ResourceExhausted(f"the command wrote more than {MAX_OUTPUT >> 20} MiB: {remedy}")
    return bytes(written["stdout"]), bytes(written["stderr"])


class Process:
    """A command running in a container; leave it as a context manager.

    It is not ended by that: a command that reads its input sees the end of it.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._ended = False

    @property
    def exit_code(self) -> int | None:
        """How it ended, once its output has; None before, and for the command of an attached container."""
        return self._channels.exit_code()

    async def feed(self, read: Read) -> None:
        """What ``read`` gives until it gives nothing, and then that end."""
        await self._channels.feed(read)

    async def write(self, data: bytes) -> None:
        """Hand it its next input. Raises ConnectionError when it has ended."""
        await self._channels.send(data)

    async def end_input(self) -> None:
        """Tell it that no more input comes."""
        await self._channels.end_input()

    async def resize(self, columns: int, rows: int) -> None:
        """Give its terminal another size."""
        await self._channels.resize(columns, rows)

    async def output(self) -> AsyncIterator[tuple[str, bytes]]:
        """What it writes, with ``stdout`` or ``stderr`` before it, until it has ended."""
        async for channel, data in self._channels.output():
            yield ("stdout" if channel == STDOUT else "stderr"), data
        self._ended = True

    async def wait(self) -> int:
        """Its exit code, once it has ended; output not read yet is thrown away."""
        if not self._ended:
            async for _ in self.output():
                pass
        if (code := self.exit_code) is None:
            raise Unavailable("the connection broke before the command ended")
        return code

    async def close(self) -> None:
        """Let go of the connection."""
        await self._channels.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Container:
    """A container that was started."""

    def __init__(self, client: CriClient, container_id: str, pod_id: str) -> None:
        self._client = client
        self.id = container_id
        self.pod_id = pod_id

    async def facts(self) -> ContainerFacts:
        """What is known of it now. Raises NotFound when it was removed."""
        request = pb.ContainerStatusRequest(container_id=self.id, verbose=True)
        answer = await self._client.runtime.container_status(request)
        status = answer.status
        ended = status.state == pb.CONTAINER_EXITED
        return ContainerFacts(
            id=self.id,
            name=name_of(status),
            pod_id=self.pod_id,
            image=status.image.user_specified_image or status.image.image,
            state=STATES.get(status.state, "unknown"),
            exit_code=status.exit_code if ended else None,
            reason=status.reason,
            health=json.loads(answer.info.get("info", "{}")).get("health", {}).get("status", ""),
        )

    async def _status(self) -> pb.ContainerStatus:
        return await container_status(self._client, self.id)

    async def exited(self) -> bool:
        """Whether it has ended, or was removed."""
        try:
            return (await self._status()).state == pb.CONTAINER_EXITED
        except NotFound:
            return True

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        while True:
            try:
                status = await self._status()
            except NotFound:
                return await self._last_code()
            if status.state == pb.CONTAINER_EXITED:
                return status.exit_code
            await asyncio.sleep(logs.POLL)

    async def _last_code(self) -> int:
        """How it ended that was removed meanwhile."""
        async with NativeClient(self._client.path) as client:
            request = native.WaitContainerRequest(container_id=self.id)
            return int((await client.containers.wait_container(request)).exit_code)

    async def exec(self, *command: str, stdin: bytes = b"", timeout: float | None = None) -> Result:
        """Run a command in it and wait for its result.

        ``timeout`` is in seconds; a command that takes longer goes on, unwatched, and TimeoutError is
        raised. More than 64 MiB of output raise ResourceExhausted.
        """
        async with (
            asyncio.timeout(timeout),
            await self.process(*command, stdin=bool(stdin)) as process,
            tasks.beside(self._feed(process, stdin)),
        ):
            return await self._result(process)

    async def _feed(self, process: Process, stdin: bytes) -> None:
        # A command may end before it has read everything.
        with contextlib.suppress(ConnectionError):
            if stdin:
                await process.write(stdin)
                await process.end_input()

    async def _result(self, process: Process) -> Result:
        written = await collected(process.output(), "read it as it comes, with process()")
        return Result(await process.wait(), *written)

    async def process(self, *command: str, stdin: bool = False, tty: bool = False) -> Process:
        """Start a command in it, whose streams are ours."""
        request = pb.ExecRequest(
            container_id=self.id, cmd=command, tty=tty, stdin=stdin, stdout=True, stderr=not tty
        )
        answer = await self._client.runtime.exec(request)
        return Process(await Channels.open(answer.url))

    async def attach(self, *, stdin: bool = True, output: bool = True, tty: bool = False) -> Process:
        """The streams of the container's own command: what it writes from now on, and what it is to read."""
        request = pb.AttachRequest(
            container_id=self.id, stdin=stdin, tty=tty, stdout=output, stderr=output and not tty
        )
        answer = await self._client.runtime.attach(request)
        return Process(await Channels.open(answer.url))

    async def log_path(self) -> Path:
        """Its log file on this machine. Raises FailedPrecondition when its pod keeps none."""
        path = (await self._status()).log_path
        if not path:
            raise FailedPrecondition(f"container {self.id[:13]} keeps no log: its pod has no log directory")
        return Path(path)

    async def logs(
        self, *, follow: bool = False, tail: int = -1, since: float = 0.0, until: float = math.inf
    ) -> AsyncIterator[logs.Line]:
        """What it has written; with ``follow`` also what it writes, until it has ended.

        ``since`` and ``until`` are seconds since 1970. Of what is there in between, only the last ``tail``
        entries are told, all for -1.
        """
        path = await self.log_path()
        span = logs.Period(since, until)
        skip = await asyncio.to_thread(logs.before_last, path, tail, span) if tail >= 0 else 0

        async def ended() -> bool:
            return not follow or time.time() > until or await self.exited()

        async for line in logs.follow(path, ended):
            if span.holds(line):
                if skip <= 0:
                    yield line
                skip -= 1

    async def put(self, path: str, source: bytes | Path, *, progress: Progress | None = None) -> None:
        """Write a file, or copy a directory of this machine, to ``path``.

        The image must have ``tar``; the directory that ``path`` lies in is made. ``progress`` is told how
        many bytes were sent, and how many there are in all.
        """
        script = 'mkdir -p -- "$1" && exec tar -x -f - -C "$1"'
        with tempfile.SpooledTemporaryFile(MAX_IN_MEMORY) as file:
            await asyncio.to_thread(archive.pack, source, path, file)

            total = file.seek(0, os.SEEK_END)
            file.seek(0)

            async def read() -> bytes:
                if progress is not None:
                    progress(file.tell(), total)
                return await asyncio.to_thread(file.read, CHUNK)

            async with (
                await self.process("sh", "-c", script, "put", archive.parent(path), stdin=True) as process,
                tasks.beside(process.feed(read)),
            ):
                (await self._result(process)).check()

    async def get(self, path: str) -> bytes:
        """What a file holds, up to 64 MiB."""
        return (await self.exec("cat", "--", path)).check().stdout

    async def fetch(
        self, path: str, directory: Path, *, limit: int = MAX_FETCHED, progress: Progress | None = None
    ) -> Path:
        """Copy a file or a directory out of the container into ``directory``, which is made; its place there.

        The image must have ``tar``. Nothing is written outside of ``directory``, whatever the container
        sends; devices and set-user-id bits are not taken over (PEP 706's ``data`` filter). More than
        ``limit`` bytes raise ResourceExhausted. ``progress`` is told how many bytes
        came, and 0 for all that there are, which nobody knows.
        """
        name = archive.name(path)
        command = ("tar", "-c", "-f", "-", "-C", archive.parent(path), "--", name)
        with tempfile.SpooledTemporaryFile(MAX_IN_MEMORY) as file:
            words = bytearray()
            async with await self.process(*command) as process:
                async for stream, data in process.output():
                    if stream == "stderr":
                        words += data[: MAX_WORDS - len(words)]
                        continue
                    await asyncio.to_thread(file.write, data)
                    if progress is not None:
                        progress(file.tell(), 0)
                    if file.tell() > limit:
                        raise ResourceExhausted(f"{path} is more than {limit >> 20} MiB: give a larger limit")
                Result(await process.wait(), stderr=bytes(words)).check()
            await asyncio.to_thread(archive.unpack, file, directory)
        return directory / name

    async def changes(self) -> AsyncIterator[FileChange]:
        """What it has changed in its image's files, a directory before what is in it.

        Volumes and what Orlop mounts are left out. Raises FailedPrecondition when its pod has ended: what it
        wrote has gone with that.
        """
        async with NativeClient(self._client.path) as client:
            request = native.ListChangesRequest(container_id=self.id)
            async for part in client.containers.list_changes(request):
                for one in part.changes:
                    yield FileChange(_CHANGES[one.kind], os.fsdecode(one.path))

    async def exported(self) -> AsyncIterator[bytes]:
        """Its files as a tar archive, in pieces: its whole root without volumes, running or not.

        Raises FailedPrecondition when its pod has ended: what it wrote has gone with that.
        """
        async with NativeClient(self._client.path) as client:
            request = native.ExportContainerRequest(container_id=self.id)
            async for part in client.containers.export_container(request):
                yield part.data

    async def commit(
        self,
        name: str = "",
        *,
        settings: Mapping[str, Any] | None = None,
        author: str = "",
        comment: str = "",
    ) -> ImageFacts:
        """Make an image of its image and of what it has changed in that, without volumes.

        The image runs what the container ran, but for ``settings``, which are those of an image
        configuration: ``{"Cmd": ["sh"]}``. Raises FailedPrecondition when its pod has ended.
        """
        async with NativeClient(self._client.path) as client:
            request = native.CommitContainerRequest(
                container_id=self.id,
                name=name,
                config=json.dumps(settings).encode() if settings else b"",
                author=author,
                comment=comment,
            )
            answer = await client.containers.commit_container(request, timeout=archives.TIMEOUT)
        return images.facts(answer.image)

    async def export(self, target: Path, *, progress: Callable[[int], None] | None = None) -> None:
        """Write that archive to ``target``, which stands there whole or not at all. Raises OSError.

        ``progress`` is told how many bytes are there.
        """
        await archives.write(target, self.exported(), progress=progress)

    async def signal(self, name: str = "KILL") -> None:
        """Send its first process a signal, by name or number; KILL goes to all of its processes."""
        async with NativeClient(self._client.path) as client:
            request = native.SignalContainerRequest(container_id=self.id, signal=name)
            await client.containers.signal_container(request)

    async def pause(self) -> None:
        """Stop all of its processes where they are."""
        async with NativeClient(self._client.path) as client:
            await client.containers.pause_container(native.PauseContainerRequest(container_id=self.id))

    async def unpause(self) -> None:
        """Let them go on."""
        async with NativeClient(self._client.path) as client:
            await client.containers.resume_container(native.ResumeContainerRequest(container_id=self.id))

    async def rename(self, name: str) -> None:
        """Give it another name, and its pod if that was made for it alone. Its id and its log stay.

        Raises AlreadyExists for a name that is taken.
        """
        async with NativeClient(self._client.path) as client:
            request = native.RenameContainerRequest(container_id=self.id, name=name)
            await client.containers.rename_container(request)

    async def check_health(self) -> Result:
        """Run its health check now: the check's exit code, and the end of what it wrote.

        Raises FailedPrecondition for a container that has none, or does not run.
        """
        async with NativeClient(self._client.path) as client:
            request = native.CheckHealthRequest(container_id=self.id)
            # As long as a check may take, the daemon knows.
            answer = await client.containers.check_health(request, timeout=None)
        return Result(answer.exit_code, answer.output.encode())

    async def stop(self, grace: float | None = None) -> None:
        """Ask it to end, and kill it ``grace`` seconds later: as many as it was made with, or 10."""
        if grace is None:
            grace = await self._grace()
        request = pb.StopContainerRequest(container_id=self.id, timeout=int(grace))
        await self._client.runtime.stop_container(request, timeout=grace + 60)

    async def _grace(self) -> float:
        try:
            text = (await self._status()).annotations.get(STOP_TIMEOUT, "")
        except NotFound:  # it has just gone with its end, and to stop what is not there is no error
            text = ""
        return float(text) if text.isascii() and text.isdecimal() and len(text) < 7 else GRACE

    async def restart(self, grace: float | None = None) -> Container:
        """Stop it if it runs, and run another like it, with the same name, log and volumes; that one.

        What it wrote elsewhere is gone, and it has another id. Raises FailedPrecondition for a container that
        was not made by ``orlop run`` or by this client.
        """
        if grace is None:
            grace = await self._grace()
        return Container(self._client, *await again.run_again(self._client, self.id, grace))

    async def remove(self) -> None:
        """Remove it, running or not."""
        await self._client.runtime.remove_container(pb.RemoveContainerRequest(container_id=self.id))
