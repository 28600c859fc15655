"""``orlop run``: a container in a pod of its own, or in one that is there, for people."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from orlop.cli import images, starting, streams, terminal
from orlop.cli.problems import CliError
from orlop.client import logs, restarts, session
from orlop.client.calls import CriClient
from orlop.client.container import Container
from orlop.client.images import present
from orlop.client.launch import RunOptions
from orlop.client.pod import Pod, find_pod
from orlop.client.restarts import RestartPolicy
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument, OrlopError
from orlop.host import tasks


async def _provide(client: CriClient, image: str, pull: str) -> None:
    if pull != "always" and await present(client, image):
        return
    if pull == "never":
        raise CliError(f"no image {image} here, and --pull never forbids to fetch it", exit_code=_FAILED)
    await images.pull(client, image)


class _Shown:
    """The container that is shown, which is another one after each restart, and so may its pod be."""

    def __init__(self, container: Container, pod: Pod, launch: RunOptions, policy: RestartPolicy) -> None:
        self.container = container
        self._pod = pod
        self._launch = launch
        self._policy = policy
        self._lines = 0

    async def to_the_end(self) -> int:
        """Show the output, hand stdin through, return the exit code: the last one."""
        times = 0
        while True:
            if self._launch.tty:
                await _terminal(self.container, self._launch)
            else:
                await self._plain()
            code = await self.container.wait()
            if not self._policy.again(code, times):
                return code
            await asyncio.sleep(restarts.pause(times))
            times += 1
            # Whole: who is interrupted in it must know what to stop.
            await tasks.uncancelled(self._again())

    async def _again(self) -> None:
        self.container = await self.container.restart(0)
        self._pod.id = self.container.pod_id

    async def _plain(self) -> None:
        # Output comes from the log, which holds all of it from the first byte on: of each container so far.
        async with contextlib.AsyncExitStack() as stack:
            if self._launch.interactive:
                await stack.enter_async_context(tasks.beside(_feed(self.container)))
            count = 0
            async for line in self.container.logs(follow=True):
                count += 1
                if count > self._lines:
                    streams.show(line)
            self._lines = count

    async def stop(self) -> None:
        """End what is shown."""
        await self.container.stop()

    async def remove(self) -> None:
        """Remove it."""
        await self.container.remove()


async def _feed(container: Container) -> None:
    async with await container.attach(output=False) as process:
        await streams.interact(process, stdin=True, tty=False)


async def _terminal(container: Container, launch: RunOptions) -> None:
    try:
        process = await container.attach(stdin=launch.interactive, tty=True)
    except OrlopError:
        if not await container.exited():
            raise
        process = None
    for line in await asyncio.to_thread(logs.read_all, await container.log_path()):
        streams.show(line)
    if process is not None:
        async with process:
            await streams.interact(process, stdin=launch.interactive, tty=True)


_NOT_FOUND = re.compile(r"executable file not found|no such file or directory", re.IGNORECASE)
_NOT_RUN = re.compile(r"permission denied|is a directory|exec format error", re.IGNORECASE)
_FAILED, _NO_PROGRAM, _NO_RIGHT = 125, 127, 126


def exit_code(error: OrlopError) -> int:
    """What a shell is told of a container that did not run, as podman tells it.

    125, which containers hardly end with; 127 where there is no such program, 126 where it is none.
    """
    words = str(error) if isinstance(error, InvalidArgument) else ""
    if _NOT_FOUND.search(words):
        return _NO_PROGRAM
    return _NO_RIGHT if _NOT_RUN.search(words) else _FAILED


class How(NamedTuple):
    """How a container is run: in the pod named ``pod`` if any, watched or not, and what is left of it."""

    pod: str
    pull: str
    detach: bool
    remove: bool
    replace: bool
    cidfile: Path | None
    policy: RestartPolicy


def _check(launch: RunOptions, how: How) -> None:
    if how.policy.after_failure and launch.interactive:
        raise CliError("--restart is not for -i: what was typed cannot be typed again", exit_code=2)
    if how.policy.after_failure and how.detach and how.remove:
        raise CliError("--restart and --rm exclude each other with -d", exit_code=2)
    if launch.tty and launch.interactive and not terminal.is_terminal():
        raise CliError("-it needs a terminal, and stdin is none: leave out -t", exit_code=2)
    if how.replace and (how.pod or not launch.name):
        raise CliError("--replace needs --name, and is not for --pod: use `orlop rm -f`", exit_code=2)


async def run_command(socket: str, launch: RunOptions, how: How) -> int:
    """``orlop run``: the container's exit code, 0 when detached."""
    _check(launch, how)
    async with starting.offered(socket, lasting=how.detach), session.connect(socket) as client:
        await _provide(client, launch.image, how.pull)
        with _id_file(how.cidfile) as note:
            if how.replace:
                await _remove_old(client, launch.name)
            found = await find_pod(client, how.pod) if how.pod else Pod(client, launch)
            container = await (found.launch(launch, launch.name) if how.pod else _alone(found, launch))
            note(container.id)
        if how.detach:
            print(container.id)
            return 0
        shown = _Shown(container, found, launch, how.policy)
        async with contextlib.AsyncExitStack() as stack:
            if how.remove:
                stack.push_async_callback(shown.remove if how.pod else found.remove)
            elif not how.pod:
                stack.push_async_callback(_rest, found)
            return await _to_the_end(shown)


@contextlib.contextmanager
def _id_file(path: Path | None) -> Iterator[Callable[[str], object]]:
    """A new file for the container's id, which goes again if there is none. Raises CliError."""
    if path is None:
        yield lambda container_id: None
        return
    try:
        file = path.open("x")
    except FileExistsError:
        raise CliError(f"the file {path} for the id is there already: remove it first", exit_code=2) from None
    with file:
        try:
            yield file.write
        except BaseException:
            path.unlink(missing_ok=True)
            raise


async def _remove_old(client: CriClient, name: str) -> None:
    # By the label alone: a start of an id or a kubelet's pod may have that name, too.
    wanted = pb.ListPodSandboxRequest()
    wanted.filter.label_selector[session.RUN_LABEL] = name
    for old in (await client.runtime.list_pod_sandbox(wanted)).items:
        await (await find_pod(client, old.id)).remove()


async def _alone(pod: Pod, launch: RunOptions) -> Container:
    await pod.create()
    try:
        return await pod.launch(launch, pod.name)
    except BaseException:
        await tasks.roll_back(f"pod {pod.name}", pod.remove())
        raise


async def _rest(pod: Pod) -> None:
    # The container stays to be looked at; its VM has nothing left to do.
    with contextlib.suppress(OrlopError):
        await pod.stop()


async def _to_the_end(shown: _Shown) -> int:
    loop = asyncio.get_running_loop()
    showing = asyncio.ensure_future(shown.to_the_end())
    caught: list[int] = []

    def interrupt(number: int) -> None:
        caught.append(number)
        showing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt, number)
    try:
        return await showing
    except asyncio.CancelledError:
        if not caught:
            raise
        await shown.stop()
        return 128 + caught[0]
