"""The handler ``process``: pods as namespaces on the host, run by an OCI runtime under conmon.

For pods that share namespaces of the host or have privileges on it, which a virtual machine cannot
serve. There is no pause container: a pod without containers is files and pinned namespaces.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time

from orlop.config import Config
from orlop.errors import NotFound, OrlopError, Unavailable
from orlop.host import process, tasks, threads
from orlop.host.tasks import Undo, together
from orlop.host.turns import Turns
from orlop.net.network import PodNetwork
from orlop.sandbox.base import Features, Sandbox
from orlop.sandbox.figures import LayerUse
from orlop.sandbox.process import checks, conmon, layout, podgroup, podns, runtime
from orlop.sandbox.process import sandbox as pods
from orlop.sandbox.process.container import Tools
from orlop.sandbox.process.layout import Layout, PodState
from orlop.sandbox.process.sandbox import ProcessSandbox
from orlop.sandbox.spec import ContainerSpec, NamespaceMode, PodSpec

NAME = "process"
_CGROUP = "/orlop"
_SLICE = "orlop.slice"
_ID_MAPPED_LAYERS = (5, 19)


class ProcessDriver:
    """Implements ``SandboxDriver``."""

    def __init__(self, config: Config, network: PodNetwork) -> None:
        self._config = config
        self._network = network
        self._layout = Layout(config.state_dir / NAME, config.root_dir / NAME)
        self._tools: Tools | None = None
        self._looking = asyncio.Lock()
        self._reason = "the handler process is not open"
        self._running: dict[str, ProcessSandbox] = {}
        self._turns = Turns()

    @property
    def name(self) -> str:
        """See ``SandboxDriver``."""
        return NAME

    @property
    def features(self) -> Features:
        """See ``SandboxDriver``."""
        known = self._tools.runtime.mount_options if self._tools is not None else frozenset()
        return Features(
            recursive_read_only_mounts="rro" in known,
            user_namespaces=self._tools is not None and _user_namespaces(),
        )

    def check(self, spec: PodSpec) -> None:
        """See ``SandboxDriver``."""
        checks.check_pod(spec, user_namespaces=self.features.user_namespaces)

    async def open(self) -> None:
        """See ``SandboxDriver``. A missing tool is told by :meth:`ready`, and looked for again."""
        await self.ready()

    async def _find_tools(self) -> Tools:
        monitor = shutil.which(self._config.process.conmon)
        if monitor is None:
            raise NotFound(f"{self._config.process.conmon} is not installed: install the package conmon")
        await conmon.find(monitor)
        await threads.call(self._layout.close)
        await threads.call(self._link_pause)
        found = await runtime.find(self._config, self._config.state_dir / "oci")
        return Tools(runtime=found, conmon=monitor, direct_volumes=self._config.vm.volumes.direct)

    def _link_pause(self) -> None:
        sleep = shutil.which("sleep")
        if sleep is None:
            raise NotFound("sleep is not installed: install the package coreutils")
        pause = self._layout.pause
        if not pause.is_symlink():
            pause.symlink_to(sleep)

    async def close(self) -> None:
        """See ``SandboxDriver``."""
        undo = Undo("the handler process")
        await together(
            *(undo.step(f"pod {pod_id[:12]}", sandbox.release()) for pod_id, sandbox in self._running.items())
        )
        self._running.clear()
        undo.finish()

    async def ready(self) -> str:
        """See ``SandboxDriver``."""
        async with self._looking:
            if self._tools is None:
                try:
                    self._tools = await self._find_tools()
                    self._reason = ""
                except (OrlopError, OSError) as error:
                    self._reason = str(error)
            return self._reason

    async def _open_tools(self) -> Tools:
        # One that could not be run just now is no reason to do without it for as long as the daemon lives.
        if self._tools is None:
            await self.ready()
        if self._tools is None:
            raise Unavailable(f"the handler process cannot be used: {self._reason}")
        return self._tools

    def _default_parent(self, pod_id: str) -> str:
        return _SLICE if self._config.cgroup_driver == "systemd" else f"{_CGROUP}/{pod_id}"

    async def run(self, spec: PodSpec) -> Sandbox:
        """See ``SandboxDriver``."""
        tools = await self._open_tools()
        self.check(spec)
        async with self._turns.of(spec.id):
            return await self._run(tools, spec)

    async def _run(self, tools: Tools, spec: PodSpec) -> Sandbox:
        paths = self._layout.pod(spec.id)
        try:
            state, holder = await pods.prepare(
                spec,
                paths,
                self._network,
                PodState(
                    cgroup=podgroup.path_of(
                        spec, self._default_parent(spec.id), systemd=tools.runtime.systemd
                    )
                ),
                self._layout.pause,
            )
        except BaseException:
            # What is left is known by the pod's id, for its owner to try again.
            await tasks.roll_back(f"the start of pod {spec.id[:12]}", self._discard(spec.id))
            raise
        found = ProcessSandbox(tools, self._network, spec, paths, state, holder)
        self._running[spec.id] = found
        return found

    async def recover(self, spec: PodSpec, containers: tuple[ContainerSpec, ...]) -> Sandbox:
        """See ``SandboxDriver``."""
        tools = await self._open_tools()
        async with self._turns.of(spec.id):
            return await self._recover(tools, spec, containers)

    async def _recover(self, tools: Tools, spec: PodSpec, containers: tuple[ContainerSpec, ...]) -> Sandbox:
        paths = self._layout.pod(spec.id)
        state = await threads.call(layout.load_pod, paths.record)
        if state is None:
            raise NotFound(f"pod {spec.id[:12]} does not run any more: nothing of it is left")
        pinned = await threads.call(podns.pinned, spec, paths)
        if lost := [kind for kind, there in pinned.items() if not there]:
            raise NotFound(f"pod {spec.id[:12]} does not run any more: its {lost[0]} namespace is gone")
        if spec.namespaces.pid is NamespaceMode.POD and not process.pid_alive(
            state.holder.pid, state.holder.start_time
        ):
            raise NotFound(f"pod {spec.id[:12]} does not run any more: its PID namespace has ended")
        await threads.call(paths.close, pods.group_of(spec, paths))
        found = ProcessSandbox(tools, self._network, spec, paths, state)
        for member in containers:
            record = paths.container(member.id).record
            await found.adopt(member.id, member, await threads.call(layout.load_container, record))
        self._running[spec.id] = found
        return found

    async def discard(self, pod_id: str) -> None:
        """See ``SandboxDriver``."""
        async with self._turns.of(pod_id):
            await tasks.uncancelled(self._discard(pod_id))

    async def _discard(self, pod_id: str) -> None:
        undo = Undo(f"pod {pod_id[:12]}")
        known = self._running.get(pod_id)
        # Not forgotten before it has stopped: what it is making must end before its files go.
        if known is not None and await undo.step("its sandbox", known.stop()):
            self._running.pop(pod_id, None)
        parent, paths = self._default_parent(pod_id), self._layout.pod(pod_id)
        tools = await self._open_tools()
        await undo.step("its traces", pods.discard(tools, self._network, paths, pod_id, parent))
        undo.finish()

    async def layers(self) -> LayerUse:
        """See ``SandboxDriver``."""
        pods = await together(*(pod.layers() for pod in self._running.values()))
        found = [layer for layers in pods for layer in layers]
        return LayerUse(
            timestamp=time.time_ns(),
            mountpoint=os.fspath(self._layout.root),
            used=sum(layer.used for layer in found),
            inodes=sum(layer.inodes for layer in found),
        )

    async def traces(self) -> list[str]:
        """See ``SandboxDriver``."""
        return await threads.call(self._layout.pods)

    def gauges(self) -> dict[str, float]:
        """Counts for the metrics."""
        return {"process_pods": float(len(self._running))}


def _user_namespaces() -> bool:
    """Whether the kernel maps the ids of an overlay's layers, and the tools needed are there."""
    parts = re.findall(r"\d+", os.uname().release)
    new_enough = tuple(int(part) for part in parts[:2]) >= _ID_MAPPED_LAYERS
    return new_enough and all(shutil.which(program) for program in ("unshare", "setpriv"))
