"""What looks at containers, runs commands in them and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

from orlop.cli import output, streams, terminal
from orlop.cli.choosing import Chosen
from orlop.cli.problems import CliError
from orlop.cli.ps import shown_address
from orlop.client import forward, logs, options, session
from orlop.client.calls import CriClient
from orlop.client.container import Container
from orlop.client.health import Condition, conditions
from orlop.client.node import Node
from orlop.client.pod import remove_pod
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import NotFound

_CHANGES = {"A": "added", "C": "changed", "D": "deleted"}


async def exec_command(
    socket: str, name: str, command: tuple[str, ...], *, interactive: bool, tty: bool
) -> int:
    """``orlop exec``: the exit code of the command."""
    if tty and interactive and not terminal.is_terminal():
        raise CliError("-it needs a terminal, and stdin is none: leave out -t", exit_code=2)
    async with session.connect(socket) as client:
        container = await Node(client).container(name)
        async with await container.process(*command, stdin=interactive, tty=tty) as process:
            code = await streams.interact(process, stdin=interactive, tty=tty)
    if code is None:
        raise CliError(f"the connection to container {container.id[:13]} broke before the command ended")
    return code


async def attach_command(socket: str, name: str, *, interactive: bool, tty: bool) -> int:
    """``orlop attach``: the exit code of the container."""
    async with session.connect(socket) as client:
        container = await Node(client).container(name)
        async with await container.attach(stdin=interactive, tty=tty) as process:
            await streams.interact(process, stdin=interactive, tty=tty)
        return await container.wait()


async def wait_command(socket: str, names: list[str], condition: str) -> None:
    """``orlop wait``: until they have ended, or only until they run, are ``healthy`` or ``unhealthy``."""
    async with session.connect(socket) as client:
        for container in [await Node(client).container(name) for name in names]:
            if condition:
                await _until(container, condition)
            print(-1 if condition else await container.wait(), flush=True)


async def _until(container: Container, condition: str) -> None:
    of_health = condition != "running"
    while (facts := await container.facts()) and condition != (facts.health if of_health else facts.state):
        if facts.state == "exited":
            raise CliError(f"container {container.id[:13]} has ended: it will not be {condition}")
        if of_health and not facts.health:
            raise CliError(f"container {container.id[:13]} has no health check: it will not be {condition}")
        await asyncio.sleep(logs.POLL)


async def diff_command(socket: str, name: str, *, as_json: bool) -> None:
    """``orlop diff``: lines as podman's, or lists by what was done, with podman's names."""
    kinds: dict[str, list[str]] = {}
    async with session.connect(socket) as client:
        container = await Node(client).container(name)
        async for one in container.changes():
            if as_json:
                kinds.setdefault(_CHANGES[one.kind], []).append(output.readable(one.path))
            else:
                print(one.kind, output.readable(one.path))
    if as_json:
        output.print_json(kinds)


async def rename_command(socket: str, name: str, new: str) -> None:
    """``orlop rename``."""
    async with session.connect(socket) as client:
        await (await Node(client).container(name)).rename(new)


async def check_command(socket: str, name: str) -> int:
    """``orlop healthcheck run``: 0 when the check finds all well, else 1."""
    async with session.connect(socket) as client:
        container = await Node(client).container(name)
        code = (await container.check_health()).exit_code
        if code:
            health = (await container.facts()).health
            print("starting" if health == "starting" else "unhealthy")
    return 1 if code else 0


async def port_forward_command(socket: str, name: str, ports: list[str]) -> None:
    """``orlop port-forward``, until it is interrupted."""
    wanted = [options.parse_forward(text) for text in ports]
    async with session.connect(socket) as client, contextlib.AsyncExitStack() as stack:
        pod_id = await _pod_of(client, name)
        for local, inside in wanted:
            opened = await stack.enter_async_context(forward.listen(client, pod_id, inside, local))
            print(f"127.0.0.1:{opened} leads to port {inside} of {name}", flush=True)
        await asyncio.Event().wait()


async def _run_pod(client: CriClient, container: pb.Container) -> str:
    """The log directory of the pod if ``orlop run`` made it, else ""."""
    if session.RUN_LABEL not in container.labels:
        return ""
    try:
        status = await session.container_status(client, container.id)
    except NotFound:  # one of --rm, which has just ended
        return ""
    return str(Path(status.log_path).parent) if status.log_path else ""


async def stop_command(socket: str, chosen: Chosen, timeout: int | None) -> None:
    """``orlop stop``."""
    async with session.connect(socket) as client:
        async for name, container in chosen.containers(client, running=True):
            await Container(client, container.id, container.pod_sandbox_id).stop(timeout)
            if session.RUN_LABEL in container.labels:
                await client.runtime.stop_pod_sandbox(
                    pb.StopPodSandboxRequest(pod_sandbox_id=container.pod_sandbox_id), timeout=120
                )
            print(name)


async def kill_command(socket: str, chosen: Chosen, signal: str) -> None:
    """``orlop kill``."""
    async with session.connect(socket) as client:
        async for name, one in chosen.containers(client, running=True):
            await Container(client, one.id, one.pod_sandbox_id).signal(signal)
            print(name)


async def restart_command(socket: str, chosen: Chosen, timeout: int | None) -> None:
    """``orlop restart``: the ids of the new containers."""
    async with session.connect(socket) as client:
        async for _, one in chosen.containers(client, running=False):
            print((await Container(client, one.id, one.pod_sandbox_id).restart(timeout)).id)


async def pause_command(socket: str, chosen: Chosen, *, paused: bool) -> None:
    """``orlop pause`` and ``orlop unpause``."""
    async with session.connect(socket) as client:
        known = await conditions(client) if chosen.everything else {}
        async for name, one in chosen.containers(client, running=True):
            if chosen.everything and known.get(one.id, Condition()).paused is paused:
                continue
            container = Container(client, one.id, one.pod_sandbox_id)
            await (container.pause() if paused else container.unpause())
            print(name)


async def port_command(socket: str, name: str, inside: str) -> None:
    """``orlop port``: as podman shows it; of one port only where on this machine it is."""
    async with session.connect(socket) as client:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=await _pod_of(client, name), verbose=True)
        answer = await client.runtime.pod_sandbox_status(request)
    ports = [
        (f"{one['inside']}/{one['protocol'].lower()}", shown_address(one))
        for one in json.loads(answer.info["info"]).get("ports", [])
    ]
    if not inside:
        for port, address in ports:
            print(f"{port} -> {address}")
        return
    wanted = inside if "/" in inside else f"{inside}/tcp"
    found = [address for port, address in ports if port == wanted]
    if not found:
        raise CliError(f"no port of this machine leads to {wanted} of {name}")
    print(*found, sep="\n")


async def _pod_of(client: CriClient, name: str) -> str:
    """The pod of that name, or of the container of that name."""
    found = await session.find_pod_id(client, name)
    return found or str((await session.find_container(client, name)).pod_sandbox_id)


async def rm_command(socket: str, chosen: Chosen, *, force: bool) -> None:
    """``orlop rm``."""
    async with session.connect(socket) as client:
        async for name, container in chosen.containers(client, running=False):
            if container.state == pb.CONTAINER_RUNNING and not force:
                raise CliError(f"{name} is running: stop it first, or add --force")
            if session.RUN_LABEL in container.labels:
                await remove_pod(client, container.pod_sandbox_id, await _run_pod(client, container))
            else:
                await client.runtime.remove_container(
                    pb.RemoveContainerRequest(container_id=container.id), timeout=120
                )
            print(name)


async def exists_command(socket: str, name: str) -> int:
    """``orlop container exists``: 0 or 1."""
    async with session.connect(socket) as client:
        try:
            await session.find_container(client, name)
        except NotFound:
            return 1
    return 0
