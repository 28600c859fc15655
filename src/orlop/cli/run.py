"""``orlop run``: a container in a pod of its own, or in one that is there, for people."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from orlop.cli import images, restarts, starting, streams, terminal
from orlop.cli.problems import CliError
from orlop.cli.restarts import RestartPolicy
from orlop.client import logs, session
from orlop.client.calls import CriClient
from orlop.client.container import Container
from orlop.client.images import present
from orlop.client.launch import RunOptions
from orlop.client.pod import Pod, find_pod
from orlop.errors import OrlopError
from orlop.host import tasks


async def _provide(client: CriClient, image: str, pull: str) -> None:
    if pull != "always" and await present(client, image):
        return
    if pull == "never":
        raise CliError(f"no image {image} here, and --pull never forbids to fetch it")
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


async def run_command(
    socket: str,
    launch: RunOptions,
    *,
    pod: str,
    pull: str,
    detach: bool,
    remove: bool,
    policy: RestartPolicy,
) -> int:
    """``orlop run``, in the pod named ``pod`` if any: the container's exit code, 0 when detached."""
    if detach and remove:
        raise CliError(
            "--rm needs the foreground: a detached container is removed with `orlop rm`", exit_code=2
        )
    if policy.after_failure and (detach or launch.interactive):
        raise CliError(
            "--restart needs the foreground, without -d and -i: run it in a systemd unit, or by Kubernetes",
            exit_code=2,
        )
    if launch.tty and launch.interactive and not terminal.is_terminal():
        raise CliError("-it needs a terminal, and stdin is none: leave out -t", exit_code=2)
    if pod and (launch.ports or launch.handler or launch.hostname or launch.dns or launch.host_network):
        raise CliError(
            "ports, handler, hostname, name servers and network are a pod's: give them to `orlop pod create`",
            exit_code=2,
        )
    async with starting.offered(socket, lasting=detach), session.connect(socket) as client:
        await _provide(client, launch.image, pull)
        found = await find_pod(client, pod) if pod else Pod(client, launch)
        container = await (found.launch(launch, launch.name) if pod else _alone(found, launch))
        if detach:
            print(container.id)
            return 0
        shown = _Shown(container, found, launch, policy)
        async with contextlib.AsyncExitStack() as stack:
            if remove:
                stack.push_async_callback(shown.remove if pod else found.remove)
            elif not pod:
                stack.push_async_callback(_rest, found)
            return await _to_the_end(shown)


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
