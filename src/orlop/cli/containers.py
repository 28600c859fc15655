"""What looks at containers, runs commands in them and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path

from orlop.cli import output, streams, terminal
from orlop.cli.problems import CliError
from orlop.cli.units import show_age, show_size
from orlop.client import forward, logs, options, session
from orlop.client.calls import CriClient
from orlop.client.node import Node
from orlop.client.pod import remove_pod
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import NotFound


async def _pod_facts(client: CriClient, pod_id: str) -> tuple[str, str, str]:
    """Name, handler and address of a pod; dashes when it is just going away."""
    try:
        answer = await client.runtime.pod_sandbox_status(
            pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True)
        )
    except NotFound:
        return "-", "-", "-"
    status = answer.status
    name = f"{status.metadata.namespace}/{status.metadata.name}"
    # The status has the handler that was asked for, "" for the node's default; the info the one it got.
    info = json.loads(answer.info.get("info", "{}"))
    return name, str(info.get("handler") or status.runtime_handler or "-"), status.network.ip or "-"


async def _state(client: CriClient, one: pb.Container) -> str:
    text = session.STATES.get(one.state, "unknown")
    if one.state != pb.CONTAINER_EXITED:
        return text
    status = await session.container_status(client, one.id)
    reason = f", {status.reason}" if status.reason not in ("", "Completed", "Error") else ""
    return f"{text} ({status.exit_code}{reason})"


async def ps_command(socket: str, everything: bool, quiet: bool, as_json: bool) -> None:
    """``orlop ps``."""
    async with session.connect(socket) as client:
        request = pb.ListContainersRequest()
        if not everything:
            request.filter.state.state = pb.CONTAINER_RUNNING
        answer = await client.runtime.list_containers(request)
        if as_json:
            output.print_message(answer)
            return
        if quiet:
            print("\n".join(one.id for one in answer.containers))
            return
        pods = {one.pod_sandbox_id: ("-", "-", "-") for one in answer.containers}
        for pod_id in pods:
            pods[pod_id] = await _pod_facts(client, pod_id)
        rows = []
        for one in sorted(answer.containers, key=lambda item: -item.created_at):
            pod, handler, address = pods[one.pod_sandbox_id]
            image = one.image.user_specified_image or one.image.image
            rows.append(
                (
                    one.id[:13],
                    image if len(image) <= 48 else image[:45] + "...",
                    show_age(one.created_at),
                    await _state(client, one),
                    one.metadata.name,
                    pod,
                    handler,
                    address,
                )
            )
    output.table(("CONTAINER ID", "IMAGE", "CREATED", "STATE", "NAME", "POD", "HANDLER", "IP"), rows)


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


async def logs_command(socket: str, name: str, *, follow: bool, timestamps: bool, tail: int) -> None:
    """``orlop logs``."""
    async with session.connect(socket) as client:
        container = await session.find_container(client, name)
        status = await session.container_status(client, container.id)
        if not status.log_path:
            raise CliError(f"container {container.id[:13]} keeps no log: its pod has no log directory")

        async def ended() -> bool:
            try:
                now = await session.container_status(client, container.id)
            except NotFound:
                return True
            return bool(not follow or now.state == pb.CONTAINER_EXITED)

        path = Path(status.log_path)
        if tail >= 0 and not follow:
            lines = await asyncio.to_thread(logs.read_all, path)
            for line in lines[len(lines) - tail if tail < len(lines) else 0 :]:
                streams.show(line, timestamps=timestamps)
            return
        skip = max(0, len(await asyncio.to_thread(logs.read_all, path)) - tail) if tail >= 0 else 0
        async for line in logs.follow(path, ended):
            if skip:
                skip -= 1
                continue
            streams.show(line, timestamps=timestamps)


async def attach_command(socket: str, name: str, *, interactive: bool, tty: bool) -> int:
    """``orlop attach``: the exit code of the container."""
    async with session.connect(socket) as client:
        container = await Node(client).container(name)
        async with await container.attach(stdin=interactive, tty=tty) as process:
            await streams.interact(process, stdin=interactive, tty=tty)
        return await container.wait()


async def wait_command(socket: str, names: list[str]) -> None:
    """``orlop wait``."""
    async with session.connect(socket) as client:
        for container in [await Node(client).container(name) for name in names]:
            print(await container.wait(), flush=True)


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
    status = await session.container_status(client, container.id)
    return str(Path(status.log_path).parent) if status.log_path else ""


async def stop_command(socket: str, names: list[str], timeout: int) -> None:
    """``orlop stop``."""
    async with session.connect(socket) as client:
        for name in names:
            container = await session.find_container(client, name)
            request = pb.StopContainerRequest(container_id=container.id, timeout=timeout)
            await client.runtime.stop_container(request, timeout=timeout + 60)
            if session.RUN_LABEL in container.labels:
                await client.runtime.stop_pod_sandbox(
                    pb.StopPodSandboxRequest(pod_sandbox_id=container.pod_sandbox_id), timeout=120
                )
            print(name)


async def kill_command(socket: str, names: list[str], signal: str) -> None:
    """``orlop kill``."""
    async with session.connect(socket) as client:
        for name in names:
            await (await Node(client).container(name)).signal(signal)
            print(name)


async def restart_command(socket: str, names: list[str], timeout: int) -> None:
    """``orlop restart``: the ids of the new containers."""
    async with session.connect(socket) as client:
        for name in names:
            container = await Node(client).container(name)
            print((await container.restart(timeout)).id)


async def pause_command(socket: str, names: list[str], *, paused: bool) -> None:
    """``orlop pause`` and ``orlop unpause``."""
    async with session.connect(socket) as client:
        for name in names:
            container = await Node(client).container(name)
            await (container.pause() if paused else container.unpause())
            print(name)


async def port_command(socket: str, name: str) -> None:
    """``orlop port``: as podman shows it."""
    async with session.connect(socket) as client:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=await _pod_of(client, name), verbose=True)
        answer = await client.runtime.pod_sandbox_status(request)
    for one in json.loads(answer.info["info"]).get("ports", []):
        address = one["address"] or "0.0.0.0"
        address = f"[{address}]" if ":" in address else address
        print(f"{one['inside']}/{one['protocol'].lower()} -> {address}:{one['port']}")


async def _pod_of(client: CriClient, name: str) -> str:
    """The pod of that name, or of the container of that name."""
    found = await session.find_pod_id(client, name)
    return found or str((await session.find_container(client, name)).pod_sandbox_id)


async def rm_command(socket: str, names: list[str], *, force: bool) -> None:
    """``orlop rm``."""
    async with session.connect(socket) as client:
        for name in names:
            container = await session.find_container(client, name)
            if container.state == pb.CONTAINER_RUNNING and not force:
                raise CliError(f"{name} is running: stop it first, or add --force")
            if session.RUN_LABEL in container.labels:
                await remove_pod(client, container.pod_sandbox_id, await _run_pod(client, container))
            else:
                await client.runtime.remove_container(
                    pb.RemoveContainerRequest(container_id=container.id), timeout=120
                )
            print(name)


async def inspect_command(socket: str, name: str) -> None:
    """``orlop inspect``: a container, a pod or an image, whichever has that name."""
    async with session.connect(socket) as client:
        try:
            container = await session.find_container(client, name)
        except NotFound:
            if pod_id := await session.find_pod_id(client, name):
                output.print_message(
                    await client.runtime.pod_sandbox_status(
                        pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True)
                    )
                )
                return
            request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name), verbose=True)
            image = await client.images.image_status(request)
            if not image.HasField("image"):
                raise CliError(f"nothing here is called {name}: no container, pod or image") from None
            output.print_message(image)
            return
        status = output.message_to_dict(
            await client.runtime.container_status(
                pb.ContainerStatusRequest(container_id=container.id, verbose=True)
            )
        )
        pod = output.message_to_dict(
            await client.runtime.pod_sandbox_status(
                pb.PodSandboxStatusRequest(pod_sandbox_id=container.pod_sandbox_id, verbose=True)
            )
        )
    output.print_json({"container": status, "pod": pod})


async def stats_command(socket: str, interval: float) -> None:
    """``orlop stats``: one table, CPU measured over ``interval`` seconds."""
    async with session.connect(socket) as client:
        before = await client.runtime.list_container_stats(pb.ListContainerStatsRequest())
        started = time.monotonic()
        await asyncio.sleep(interval)
        after = await client.runtime.list_container_stats(pb.ListContainerStatsRequest())
        elapsed = time.monotonic() - started
    used = {one.attributes.id: one.cpu.usage_core_nano_seconds.value for one in before.stats}
    rows = []
    for one in after.stats:
        now = one.cpu.usage_core_nano_seconds.value
        share = (now - used.get(one.attributes.id, now)) / 1e9 / elapsed
        rows.append(
            (
                one.attributes.id[:13],
                one.attributes.metadata.name,
                f"{share * 100:.1f} %",
                show_size(one.memory.working_set_bytes.value),
                show_size(one.writable_layer.used_bytes.value),
            )
        )
    output.table(("CONTAINER ID", "NAME", "CPU", "MEMORY", "DISK"), rows)
