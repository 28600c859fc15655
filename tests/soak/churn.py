"""Clients that make, use and remove pods as a kubelet does, hurried and against each other.

What a client was told is kept in :class:`Pod` and held against what the daemon says later. Every call has a
deadline of its own: one that passes it has hung.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format

from orlop.client.calls import CriClient
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import DeadlineExceeded, NotFound, OrlopError, Unavailable
from tests.node import BUSYBOX, Node
from tests.patience import PATIENCE

DEADLINE = 120.0 * PATIENCE
"""Seconds after which a call has hung: every time-out of the daemon, a few of them one after the other."""

PATIENT = 300.0 * PATIENCE
"""Seconds within which what was made can be removed, whatever fails meanwhile."""

EXIT = 7
COMMANDS = (
    ("sleep", "1000"),
    ("sh", "-c", "trap '' TERM; sleep 1000"),
    ("sh", "-c", f"echo out; echo err >&2; sleep 0.3; exit {EXIT}"),
    ("sh", "-c", "while true; do echo line; usleep 20000; done"),
)


@dataclass
class Container:
    """What the client was told of a container."""

    id: str
    command: tuple[str, ...]
    running: bool = False
    disturbed: bool = False
    """Somebody stopped it, or tried to."""


@dataclass
class Pod:
    """What the client was told of a pod."""

    name: str
    handler: str
    config: pb.PodSandboxConfig
    id: str = ""
    containers: list[Container] = field(default_factory=list)
    leaving: bool = False


class Soak:
    """All clients of a node, and what they found wrong; ``handlers`` have the pods, each its share."""

    def __init__(self, node: Node, seed: int, handlers: dict[str, float]) -> None:
        self.node = node
        self.seed = seed
        self.handlers = handlers
        self.faults: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.pods: dict[str, Pod] = {}
        self.begun = 0
        self.made: dict[str, int] = dict.fromkeys(handlers, 0)
        self.calls = 0
        self.failed: dict[str, int] = {}
        self.slowest = (0.0, "")
        self.wrong: list[str] = []
        self.gone: set[str] = set()
        """Pods of which the daemon has said that they are removed."""
        self.serving = asyncio.Event()
        self.serving.set()
        self.killed_machines = 0
        self._client: CriClient | None = None
        self._before: list[CriClient] = []

    @property
    def client(self) -> CriClient:
        """A connection to the daemon."""
        if self._client is None:
            self._client = CriClient(self.node.scratch / "orlop.sock")
        return self._client

    def reconnect(self) -> None:
        """A new connection for the calls to come; those under way fail by themselves."""
        if self._client is not None:
            self._before.append(self._client)
            self._client = None

    async def close(self) -> None:
        """Let go of the connections."""
        self.reconnect()
        for client in self._before:
            await client.close()

    def complain(self, what: str) -> None:
        """Something that must not be."""
        self.wrong.append(f"{time.time():.3f} {what}")
        print(f"WRONG: {what}", flush=True)

    async def call(self, name: str, request: Any, *, cancel: float = 0.0) -> Any:
        """One call. Raises OrlopError as the daemon does, Unavailable also while there is no daemon.

        With ``cancel`` it is given up after so many seconds, and TimeoutError is raised.
        """
        await self.serving.wait()
        self.calls += 1
        begun = time.monotonic()
        service = self.client.images if "image" in name else self.client.runtime
        try:
            if cancel:
                async with asyncio.timeout(cancel):
                    return await getattr(service, name)(request, timeout=DEADLINE)
            return await getattr(service, name)(request, timeout=DEADLINE)
        except OrlopError as error:
            self.failed[type(error).__name__] = self.failed.get(type(error).__name__, 0) + 1
            if isinstance(error, DeadlineExceeded) and time.monotonic() - begun >= DEADLINE - 1:
                self.complain(f"{name} hung: no answer within {DEADLINE:g} s ({_short(request)})")
            if "Traceback" in str(error) or f"{_camel(name)}: " in str(error):
                self.complain(f"{name} failed unexpectedly: {error}")
            raise
        finally:
            spent = time.monotonic() - begun
            if spent > self.slowest[0]:
                self.slowest = (spent, name)

    # One pod's life

    async def worker(self, number: int, limit: int, until: float) -> None:
        """Pods one after the other."""
        while self.begun < limit and time.monotonic() < until:
            self.begun += 1
            chance = random.Random(f"{self.seed} pod {self.begun}")
            await self.live(f"soak-{self.begun}", chance)

    async def live(self, name: str, chance: random.Random) -> None:
        """A pod from the beginning to its end, whatever fails on the way."""
        handler = chance.choices(list(self.handlers), list(self.handlers.values()))[0]
        config = self.node.pod_config(name)
        pod = Pod(name, handler, json_format.ParseDict(config, pb.PodSandboxConfig()))
        self.pods[name] = pod
        with contextlib.suppress(OrlopError, TimeoutError):
            await self._use(pod, chance)
        await self.leave(pod, chance)

    async def _use(self, pod: Pod, chance: random.Random) -> None:
        request = pb.RunPodSandboxRequest(config=pod.config, runtime_handler=pod.handler)
        await self._retried("run_pod_sandbox", request, chance, pod=pod)
        if not pod.id:
            return
        self.made[pod.handler] += 1
        for number in range(chance.choice((1, 1, 2))):
            await self._container(pod, number, chance)
            await self.check(pod)
        if chance.random() < 0.3:
            await self._against_each_other(pod, chance)
        for container in pod.containers:
            if container.running and chance.random() < 0.5:
                await self._exec(container)
            if chance.random() < 0.2:
                await self.call("container_stats", pb.ContainerStatsRequest(container_id=container.id))
            await self.check(pod)
            if container.command == COMMANDS[2] and not container.disturbed:
                await self._ends_by_itself(pod, container)
            if chance.random() < 0.4:
                container.disturbed = True
                container.running = False
                timeout = chance.choice((0, 1, 2))
                await self.call(
                    "stop_container", pb.StopContainerRequest(container_id=container.id, timeout=timeout)
                )

    async def _container(self, pod: Pod, number: int, chance: random.Random) -> None:
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=f"c{number}"),
            image=pb.ImageSpec(image=BUSYBOX),
            command=chance.choice(COMMANDS),
            log_path=f"c{number}.log",
            linux=pb.LinuxContainerConfig(),
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        answer = await self._retried("create_container", request, chance)
        if answer is None:
            return
        container = Container(answer.container_id, tuple(config.command))
        pod.containers.append(container)
        await self.check(pod)
        start = pb.StartContainerRequest(container_id=container.id)
        if await self._retried("start_container", start, chance) is not None:
            container.running = True

    async def _retried(self, name: str, request: Any, chance: random.Random, pod: Pod | None = None) -> Any:
        """A call that is made again when it fails, or given up and made again; None if it never succeeds."""
        for _ in range(3):
            cancel = chance.uniform(0.01, 0.5) if chance.random() < 0.1 else 0.0
            try:
                answer = await self.call(name, request, cancel=cancel)
            except TimeoutError:
                continue
            except OrlopError:
                await asyncio.sleep(chance.uniform(0, 0.3))
                continue
            if pod is not None:
                pod.id = answer.pod_sandbox_id
            return answer
        return None

    async def _exec(self, container: Container) -> None:
        request = pb.ExecSyncRequest(container_id=container.id, cmd=["echo", container.id], timeout=20)
        answer = await self.call("exec_sync", request)
        if answer.exit_code == 0 and answer.stdout.decode().strip() != container.id:
            self.complain(f"exec in {container.id} wrote {answer.stdout!r} and succeeded")

    async def _against_each_other(self, pod: Pod, chance: random.Random) -> None:
        """Two calls on one object at once; afterwards the client expects no more of it than both allow."""
        if not pod.containers:
            return
        container = pod.containers[-1]
        container.disturbed = True
        container.running = False
        stop = self.call("stop_container", pb.StopContainerRequest(container_id=container.id, timeout=0))
        start = self.call("start_container", pb.StartContainerRequest(container_id=container.id))
        status = self.call(
            "container_status", pb.ContainerStatusRequest(container_id=container.id, verbose=True)
        )
        run = self.call("exec_sync", pb.ExecSyncRequest(container_id=container.id, cmd=["true"], timeout=5))
        pod_stop = self.call("stop_pod_sandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
        pairs: tuple[tuple[Awaitable[Any], ...], ...] = (
            (stop, start),
            (stop, run),
            (start, pod_stop),
            (status, pod_stop),
        )
        chosen = chance.choice(pairs)
        if pod_stop in chosen:
            for one in pod.containers:
                one.disturbed, one.running = True, False
        for unused in {stop, start, status, run, pod_stop} - set(chosen):
            unused.close()
        await asyncio.gather(*chosen, return_exceptions=True)

    async def _ends_by_itself(self, pod: Pod, container: Container) -> None:
        limit = time.monotonic() + 60 * PATIENCE
        while container.running:
            status = await self._status(container)
            if status is None:
                return
            if status.state == pb.CONTAINER_EXITED:
                # What watches a container may be what is killed; then that is what is told.
                excused = self.killed_machines or "conmon" in status.message
                if status.exit_code != EXIT and not excused:
                    self.complain(
                        f"container {container.id} of {pod.name} ({pod.handler}) ended with "
                        f"{status.exit_code} ({status.reason}: {status.message}), not {EXIT}"
                    )
                container.running = False
                return
            if time.monotonic() > limit:
                self.complain(f"container {container.id} of {pod.name} does not end")
                return
            await asyncio.sleep(0.2)

    async def _status(self, container: Container) -> Any:
        try:
            answer = await self.call("container_status", pb.ContainerStatusRequest(container_id=container.id))
        except NotFound:
            self.complain(f"container {container.id}, which was created, is lost")
            container.running = False
            return None
        return answer.status

    async def check(self, pod: Pod) -> None:
        """What the daemon lists of a pod is what its client was told."""
        try:
            wanted = pb.ContainerFilter(pod_sandbox_id=pod.id)
            answer = await self.call("list_containers", pb.ListContainersRequest(filter=wanted))
        except OrlopError:
            return
        states = {one.id: one.state for one in answer.containers}
        for container in pod.containers:
            if container.id not in states:
                self.complain(f"container {container.id} of {pod.name}, which was created, is lost")
            elif states[container.id] == pb.CONTAINER_EXITED and container.running:
                await self._has_ended(pod, container)

    async def _has_ended(self, pod: Pod, container: Container) -> None:
        """Only a fault may have ended it, and then that is what is told of its end.

        Of a VM anything may be said, since machines are killed.
        """
        if pod.handler == "vm" or container.disturbed or container.command == COMMANDS[2]:
            return
        container.running = False
        try:
            status = await self._status(container)
        except OrlopError:
            return
        if status is not None and not any(word in status.message for word in ("conmon", "injected")):
            self.complain(
                f"container {container.id} of {pod.name} ({pod.handler}) ended by itself: "
                f"{status.exit_code} ({status.reason}: {status.message})"
            )

    async def leave(self, pod: Pod, chance: random.Random) -> None:
        """Stop and remove all that has the pod's name, again and again until it is gone."""
        pod.leaving = True
        limit = time.monotonic() + PATIENT
        wanted = pb.PodSandboxFilter()
        last = ""
        while True:
            try:
                answer = await self.call("list_pod_sandbox", pb.ListPodSandboxRequest(filter=wanted))
                found = [one.id for one in answer.items if one.metadata.name == pod.name]
                if not found:
                    del self.pods[pod.name]
                    return
                for one in found:
                    await self._remove(one, chance)
            except (OrlopError, TimeoutError) as error:
                last = f"{type(error).__name__}: {error}"
            if time.monotonic() > limit:
                self.complain(f"pod {pod.name} ({pod.handler}) cannot be removed: {last}")
                return
            await asyncio.sleep(chance.uniform(0.05, 0.5))

    async def collect(self) -> None:
        """Remove every pod there is, as a kubelet does with those that it does not want.

        A call that was given up goes on for the retry that may come: a pod may be made that nobody expects.
        """
        limit = time.monotonic() + PATIENT
        chance = random.Random(0)
        while time.monotonic() < limit:
            answer = await self.call("list_pod_sandbox", pb.ListPodSandboxRequest())
            if not answer.items:
                return
            for one in answer.items:
                with contextlib.suppress(OrlopError, TimeoutError):
                    await self._remove(one.id, chance)

    async def _remove(self, pod_id: str, chance: random.Random) -> None:
        stop = pb.StopPodSandboxRequest(pod_sandbox_id=pod_id)
        remove = pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id)
        what = chance.random()
        if what < 0.2:
            await asyncio.gather(
                self.call("stop_pod_sandbox", stop),
                self.call("remove_pod_sandbox", remove),
                return_exceptions=True,
            )
        elif what < 0.3:
            await self.call("remove_pod_sandbox", remove, cancel=chance.uniform(0.01, 0.3))
        else:
            await self.call("stop_pod_sandbox", stop)
            await self.call("remove_pod_sandbox", remove)
            self.gone.add(pod_id)


def _short(request: Any) -> str:
    return " ".join(str(request).split())[:200]


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def seed_of(text: str) -> int:
    """The seed to take: the one given, or a new one."""
    return int(text) if text else int.from_bytes(os.urandom(4), "big")


__all__ = ["Soak", "Unavailable", "seed_of"]
