"""``orlop run``: one pod with one container, for people."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orlop.cli import images, logs, session, streams, terminal, units
from orlop.cli.problems import CliError
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.client import CriClient
from orlop.errors import OrlopError
from orlop.linux.removal import remove_tree

LOG_ROOT = "/var/log/orlop"
LOG_NAME = "container.log"
START_TIMEOUT = 240.0
STOP_GRACE = 10


@dataclass(frozen=True)
class Launch:
    """A pod with one container, as people ask for it.

    ``ports``, ``volumes``, ``environment`` and ``memory`` are written as on the command line
    (:mod:`orlop.cli.units`); "" and 0 leave a thing to the image or to the daemon.
    """

    image: str
    command: tuple[str, ...] = ()
    interactive: bool = False
    tty: bool = False
    remove: bool = False
    detach: bool = False
    ports: Sequence[str] = ()
    volumes: Sequence[str] = ()
    environment: Sequence[str] = ()
    memory: str = ""
    cpus: float = 0.0
    name: str = ""
    handler: str = ""
    workdir: str = ""
    user: str = ""
    entrypoint: str = ""
    host_network: bool = False
    privileged: bool = False
    read_only: bool = False
    pull: str = "missing"
    labels: dict[str, str] = field(default_factory=dict)


def log_root() -> Path:
    """Where the logs of pods made by ``run`` go; ``$ORLOP_LOG_ROOT`` chooses another place."""
    return Path(os.environ.get("ORLOP_LOG_ROOT") or LOG_ROOT)


def resources(launch: Launch) -> pb.LinuxContainerResources:
    """Limits as CRI has them."""
    limits = pb.LinuxContainerResources()
    if launch.memory:
        limits.memory_limit_in_bytes = units.parse_size(launch.memory)
    if launch.cpus > 0:
        limits.cpu_period = 100_000
        limits.cpu_quota = int(launch.cpus * 100_000)
        limits.cpu_shares = max(2, int(launch.cpus * 1024))
    return limits


def pod_config(launch: Launch, name: str, uid: str) -> pb.PodSandboxConfig:
    """The pod of a run."""
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=name, uid=uid, namespace=session.NAMESPACE),
        hostname="" if launch.host_network else name,
        log_directory=os.fspath(log_root() / f"{name}_{uid}"),
        labels={session.RUN_LABEL: name, **launch.labels},
    )
    config.port_mappings.extend(units.parse_port(text) for text in launch.ports)
    config.linux.resources.CopyFrom(resources(launch))
    context = config.linux.security_context
    context.privileged = launch.privileged
    if launch.host_network:
        context.namespace_options.network = pb.NODE
    return config


def container_config(launch: Launch, name: str, image: str) -> pb.ContainerConfig:
    """The container of a run."""
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=pb.ImageSpec(image=image, user_specified_image=launch.image),
        command=[launch.entrypoint] if launch.entrypoint else [],
        args=launch.command,
        working_dir=launch.workdir,
        labels={session.RUN_LABEL: name, **launch.labels},
        log_path=LOG_NAME,
        stdin=launch.interactive,
        stdin_once=launch.interactive,
        tty=launch.tty,
    )
    if launch.tty:
        config.envs.append(pb.KeyValue(key="TERM", value=os.environ.get("TERM", "xterm").encode()))
    config.envs.extend(units.parse_environment(text) for text in launch.environment)
    config.mounts.extend(units.parse_volume(text) for text in launch.volumes)
    config.linux.resources.CopyFrom(resources(launch))
    context = config.linux.security_context
    context.privileged = launch.privileged
    context.readonly_rootfs = launch.read_only
    if launch.host_network:
        context.namespace_options.network = pb.NODE
    _set_user(context, launch.user)
    return config


def _set_user(context: pb.LinuxContainerSecurityContext, user: str) -> None:
    if not user:
        return
    who, _, group = user.partition(":")
    if who.isdecimal():
        context.run_as_user.value = int(who)
    else:
        context.run_as_username = who
    if group:
        if not group.isdecimal():
            raise CliError(f"--user {user}: the group must be a number", exit_code=2)
        context.run_as_group.value = int(group)


async def _image_id(client: CriClient, launch: Launch) -> str:
    found = "" if launch.pull == "always" else await images.present(client, launch.image)
    if found:
        return found
    if launch.pull == "never":
        raise CliError(f"no image {launch.image} here, and --pull never forbids to fetch it")
    return await images.pull(client, launch.image)


async def remove_pod(client: CriClient, pod_id: str, log_directory: str = "") -> None:
    """Stop and remove a pod; its logs as well, if they lie where ``run`` puts them."""
    await client.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=120)
    await client.runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id), timeout=120)
    directory = Path(log_directory) if log_directory else None
    if directory is not None and directory.parent == log_root():
        with contextlib.suppress(OSError):
            await asyncio.to_thread(remove_tree, directory)


class Run:
    """One run, from its image to its exit code."""

    def __init__(self, client: CriClient, launch: Launch) -> None:
        self._client = client
        self._launch = launch
        self._name = launch.name or f"orlop-{secrets.token_hex(3)}"
        self._pod = pod_config(launch, self._name, secrets.token_hex(8))
        self.pod_id = ""
        self.container_id = ""

    async def start(self) -> None:
        """Make the pod and start the container; on failure nothing stays behind."""
        image = await _image_id(self._client, self._launch)
        config = container_config(self._launch, self._name, image)
        runtime = self._client.runtime
        answer = await runtime.run_pod_sandbox(
            pb.RunPodSandboxRequest(config=self._pod, runtime_handler=self._launch.handler),
            timeout=START_TIMEOUT,
        )
        self.pod_id = answer.pod_sandbox_id
        try:
            created = await runtime.create_container(
                pb.CreateContainerRequest(
                    pod_sandbox_id=self.pod_id, config=config, sandbox_config=self._pod
                ),
                timeout=START_TIMEOUT,
            )
            self.container_id = created.container_id
            await runtime.start_container(
                pb.StartContainerRequest(container_id=self.container_id), timeout=START_TIMEOUT
            )
        except BaseException:
            await self.discard()
            raise

    async def discard(self) -> None:
        """Remove the pod and its logs."""
        await remove_pod(self._client, self.pod_id, self._pod.log_directory)

    async def _status(self) -> pb.ContainerStatus:
        return await session.container_status(self._client, self.container_id)

    async def exited(self) -> bool:
        """Whether the container has ended."""
        return (await self._status()).state == pb.CONTAINER_EXITED

    async def exit_code(self) -> int:
        """The container's exit code, once it has ended."""
        while True:
            status = await self._status()
            if status.state == pb.CONTAINER_EXITED:
                return status.exit_code
            await asyncio.sleep(logs.POLL)

    async def foreground(self) -> int:
        """Show the output, hand stdin through, return the exit code."""
        if self._launch.tty:
            await self._terminal()
        else:
            await self._plain()
        return await self.exit_code()

    async def _plain(self) -> None:
        # Output comes from the log, which holds all of it from the first byte on.
        feeding = None
        if self._launch.interactive:
            feeding = asyncio.ensure_future(self._feed())
        try:
            path = Path(self._pod.log_directory) / LOG_NAME
            async for line in logs.follow(path, self.exited):
                logs.show(line)
        finally:
            if feeding is not None:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)

    async def _open(self, *, output: bool) -> streams.Channels:
        request = pb.AttachRequest(
            container_id=self.container_id,
            stdin=self._launch.interactive,
            tty=self._launch.tty,
            stdout=output,
            stderr=output and not self._launch.tty,
        )
        answer = await self._client.runtime.attach(request)
        return await streams.Channels.open(answer.url)

    async def _feed(self) -> None:
        channels = await self._open(output=False)
        try:
            pumping = asyncio.ensure_future(channels.pump_stdin())
            try:
                await channels.receive()
            finally:
                pumping.cancel()
                await asyncio.gather(pumping, return_exceptions=True)
        finally:
            await channels.close()

    async def _terminal(self) -> None:
        try:
            channels = await self._open(output=True)
        except (OrlopError, CliError):
            if not await self.exited():
                raise
            channels = None
        missed = await asyncio.to_thread(logs.read_all, Path(self._pod.log_directory) / LOG_NAME)
        for line in missed:
            logs.show(line)
        if channels is None:
            return
        try:
            await streams.interact(channels, stdin=self._launch.interactive, tty=True)
        finally:
            await channels.close()


async def run_command(socket: str, launch: Launch) -> int:
    """``orlop run``: the exit code of the container, 0 when detached."""
    if launch.detach and launch.remove:
        raise CliError(
            "--rm needs the foreground: a detached container is removed with `orlop rm`", exit_code=2
        )
    if launch.tty and launch.interactive and not terminal.is_terminal():
        raise CliError("-it needs a terminal, and stdin is none: leave out -t", exit_code=2)
    async with session.connect(socket) as client:
        run = Run(client, launch)
        await run.start()
        if launch.detach:
            print(run.container_id)
            return 0
        return await _to_the_end(client, run, launch)


async def _to_the_end(client: CriClient, run: Run, launch: Launch) -> int:
    loop = asyncio.get_running_loop()
    showing = asyncio.ensure_future(run.foreground())
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
        request = pb.StopContainerRequest(container_id=run.container_id, timeout=STOP_GRACE)
        await client.runtime.stop_container(request, timeout=STOP_GRACE + 60)
        return 128 + caught[0]
    finally:
        if launch.remove:
            await run.discard()
        else:
            # The container stays to be looked at; its VM has nothing left to do.
            with contextlib.suppress(OrlopError):
                await client.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=run.pod_id))
