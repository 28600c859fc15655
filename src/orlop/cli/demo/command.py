"""``orlop demo``: the whole way of an image into a VM, on what the machine has.

A scratch directory holds everything: an image made of the machine's static busybox, a registry on
loopback that serves it (Debian's ``docker-registry``, unpacked and not installed), a private daemon
with its own state, sockets and pod network. All of it is gone afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import platform
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar

from orlop.cli import output
from orlop.cli.demo import privatedaemon, registry
from orlop.cli.demo.image import PORT, push_demo_image
from orlop.cli.problems import CliError
from orlop.client import session
from orlop.client.calls import CriClient
from orlop.config import load
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import OrlopError
from orlop.linux.removal import remove_tree

T = TypeVar("T")

IMAGE = "registry.demo/orlop/hello:1"


class Steps:
    """Prints each step with the time it took."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    async def take(self, what: str, work: Awaitable[T]) -> T:
        """Do ``work`` and tell how long it took."""
        console = output.console()
        started = time.monotonic()
        if console.is_terminal:
            with console.status(what):
                result = await work
        else:
            result = await work
        console.print(f"  [green]done[/] {time.monotonic() - started:7.2f} s  {what}")
        return result

    def show(self, name: str, value: str) -> None:
        """A fact found on the way."""
        from rich.markup import escape

        for number, line in enumerate(value.rstrip().splitlines() or ["-"]):
            output.console().print(
                f"                    {name if number == 0 else '':<14} [cyan]{escape(line)}[/]"
            )

    def total(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun


def _pod(scratch: Path) -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="hello", uid="demo", namespace="demo"),
        hostname="hello",
        log_directory=os.fspath(scratch / "logs"),
        dns_config=pb.DNSConfig(servers=["192.0.2.53"], searches=["demo.example"]),
    )


def _container(image: str) -> pb.ContainerConfig:
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="hello"),
        image=pb.ImageSpec(image=image, user_specified_image=IMAGE),
        log_path="hello.log",
        envs=[pb.KeyValue(key="WHO", value=b"Orlop")],
    )


async def _exec(client: CriClient, container_id: str, *command: str) -> str:
    request = pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=60)
    answer = await client.runtime.exec_sync(request, timeout=90)
    if answer.exit_code != 0:
        said = answer.stderr.decode(errors="replace").strip()
        raise CliError(f"{' '.join(command)} in the container ended with {answer.exit_code}: {said}")
    return str(answer.stdout.decode(errors="replace"))


async def _log(path: Path, marker: str) -> str:
    """The log's content, once ``marker`` is in it."""
    from orlop.client import logs

    for _ in range(600):
        text = b"".join(line.content for line in await asyncio.to_thread(logs.read_all, path)).decode()
        if marker in text:
            return text
        await asyncio.sleep(0.05)
    raise CliError(f"the container's log {path} did not show {marker!r} within 30 s")


def _fetch(address: str) -> str:
    connection = http.client.HTTPConnection(address, PORT, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode(errors="replace").strip()
    finally:
        connection.close()


class Demo:
    """One run of the demo against a daemon that is up."""

    def __init__(self, client: CriClient, scratch: Path, handler: str, steps: Steps) -> None:
        self._client = client
        self._scratch = scratch
        self._handler = handler
        self._steps = steps

    async def run(self) -> None:
        """From the pull to the removal."""
        steps, client, runtime = self._steps, self._client, self._client.runtime
        pull = pb.PullImageRequest(image=pb.ImageSpec(image=IMAGE))
        pulled = await steps.take(f"pulled {IMAGE}", client.images.pull_image(pull, timeout=300))
        pod = _pod(self._scratch)
        request = pb.RunPodSandboxRequest(config=pod, runtime_handler=self._handler)
        answer = await steps.take(
            f"pod started with handler {self._handler}", runtime.run_pod_sandbox(request, timeout=300)
        )
        pod_id = answer.pod_sandbox_id
        try:
            container_id = await steps.take(
                "container created and started", self._start(pod_id, pod, pulled.image_ref)
            )
            await self._look(pod_id, container_id)
        finally:
            await self._remove(pod_id)

    async def _start(self, pod_id: str, pod: pb.PodSandboxConfig, image: str) -> str:
        create = pb.CreateContainerRequest(
            pod_sandbox_id=pod_id, config=_container(image), sandbox_config=pod
        )
        created = await self._client.runtime.create_container(create, timeout=120)
        start = pb.StartContainerRequest(container_id=created.container_id)
        await self._client.runtime.start_container(start, timeout=120)
        return str(created.container_id)

    async def _look(self, pod_id: str, container_id: str) -> None:
        steps, client = self._steps, self._client
        log_file = self._scratch / "logs" / "hello.log"
        steps.show("log", await steps.take("read its log", _log(log_file, "ready")))
        guest = (await steps.take("exec: uname -r", _exec(client, container_id, "uname", "-r"))).strip()
        steps.show("kernel", f"{guest} in the container, {platform.release()} on the host")
        if self._handler == "vm" and guest == platform.release():
            raise CliError(f"the container sees the host's kernel {guest}: that was no virtual machine")
        status = await client.runtime.pod_sandbox_status(
            pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True)
        )
        address = status.status.network.ip
        steps.show("pod address", address)
        page = await steps.take(f"http://{address}:{PORT}/ from the host", asyncio.to_thread(_fetch, address))
        steps.show("answer", page)
        steps.show(
            "inside",
            await _exec(client, container_id, "/bin/sh", "-c", "hostname; cat /etc/resolv.conf"),
        )

    async def _remove(self, pod_id: str) -> None:
        runtime = self._client.runtime

        async def both() -> None:
            await runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=120)
            await runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id), timeout=120)

        await self._steps.take("pod stopped and removed", both())


async def _first_ready(client: CriClient, handler: str) -> None:
    """Wait until the daemon says that it can run pods; under emulation its template takes a while."""
    reason = ""
    for _ in range(600):
        status = await client.runtime.status(pb.StatusRequest())
        bad = [one for one in status.status.conditions if not one.status]
        names = [one.name for one in status.runtime_handlers]
        if not bad and (handler in names or not names):
            return
        reason = "; ".join(one.message or one.reason for one in bad) or f"no handler {handler}"
        await asyncio.sleep(0.2)
    raise CliError(f"the daemon does not get ready: {reason} (`orlop doctor` says more)")


@contextlib.asynccontextmanager
async def _scratch(keep: bool) -> AsyncIterator[Path]:
    # Short, because Unix sockets below it have paths of 107 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="orlop-demo-", dir="/tmp"))
    try:
        yield directory
    finally:
        if keep:
            output.console().print(f"  kept: {directory}")
        else:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(remove_tree, directory)


async def demo_command(handler: str, *, keep: bool) -> int:
    """``orlop demo``."""
    if handler not in ("vm", "process"):
        raise CliError(f"--handler {handler}: choose vm or process", exit_code=2)
    if os.geteuid() != 0:
        raise CliError("run the demo as root: it makes network namespaces and mounts")
    base = load()
    steps = Steps()
    async with contextlib.AsyncExitStack() as stack:
        scratch = await stack.enter_async_context(_scratch(keep))
        if handler == "vm":
            await steps.take("guest image found or built", privatedaemon.ensure_guest(base))
        port = _free_port()
        address = await steps.take(
            "registry on loopback started",
            stack.enter_async_context(registry.registry(scratch / "registry", f"127.0.0.1:{port}")),
        )
        await steps.take("image made from busybox and pushed", push_demo_image(address, IMAGE))
        settings = privatedaemon.Settings(
            base=base,
            scratch=scratch,
            mirrors={"registry.demo": f"{address}/registry.demo"},
            handler=handler,
        )
        path = await steps.take(
            "private daemon started", stack.enter_async_context(privatedaemon.daemon(settings))
        )
        async with session.connect(path) as client:
            try:
                await steps.take("daemon ready for pods", _first_ready(client, handler))
                await Demo(client, scratch, handler, steps).run()
            except (OrlopError, CliError) as error:
                log = await asyncio.to_thread(settings.log_tail)
                raise CliError(f"{error}\nThe daemon's last words:\n{log}") from error
    output.console().print(f"[bold green]The demo succeeded[/] in {steps.total():.1f} s.")
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
