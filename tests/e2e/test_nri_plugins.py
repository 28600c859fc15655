"""Plug-ins made with NRI's own library, against a real daemon, under both handlers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import FailedPrecondition, OrlopError
from tests.conformance import tools
from tests.e2e.test_cri_calls import BUSYBOX, Caller, CriClient
from tests.node import Node, node
from tests.patience import PATIENCE, SLOWNESS

HANDLERS = pytest.mark.parametrize("handler", ["vm", "process"])
REQUEST_TIMEOUT = 6.0 * SLOWNESS


class NriNode:
    """A node with plug-ins: ``installed`` is what the one that it starts itself writes down."""

    def __init__(self, one: Node, directory: Path, peer: Path) -> None:
        self.node = one
        self.directory = directory
        self.peer = peer
        self.installed = directory / "installed.log"

    @contextlib.contextmanager
    def plugin(self, name: str, index: str = "10", **wishes: Any) -> Iterator[Path]:
        """Another one, which connects; what it writes down."""
        log = self.directory / f"{name}-{os.urandom(3).hex()}.log"
        text = json.dumps({"log": os.fspath(log), **wishes})
        socket = os.fspath(self.directory / "nri.sock")
        child = subprocess.Popen(
            [self.peer, "-idx", index, "-name", name, "-socket", socket, "-wishes", text],
            stderr=subprocess.DEVNULL,
        )
        said = f"{index}-{name} is dropped"
        before = self.node.settings.log.read_text().count(said)
        try:
            wait_for(log, "Synchronized")
            yield log
        finally:
            child.kill()
            child.wait()
            # The daemon sees its end before the next test asks for something: this one's, and not that of
            # another one of the name.
            limit = time.monotonic() + 30 * PATIENCE
            while self.node.settings.log.read_text().count(said) <= before:
                assert time.monotonic() < limit
                time.sleep(0.05)


def written(log: Path) -> list[dict[str, Any]]:
    """What a plug-in has written down so far; the last line may not be whole yet."""
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def heard(log: Path, pod: str = "") -> list[str]:
    """The names of the events, those of one pod."""
    return [one["event"] for one in written(log) if not pod or one["pod"] == pod]


def wait_for(log: Path, event: str, pod: str = "") -> list[str]:
    limit = time.monotonic() + 60 * PATIENCE
    while not any(one.startswith(event) for one in heard(log, pod)):
        assert time.monotonic() < limit, f"no {event} in {heard(log)}"
        time.sleep(0.05)
    return heard(log, pod)


@pytest.fixture(scope="module")
def nri(registry: str) -> Iterator[NriNode]:
    peer = tools.peer("nri")
    with tempfile.TemporaryDirectory(prefix="orlop-nri-") as scratch:
        directory = Path(scratch)
        plugins, settings = directory / "plugins", directory / "conf.d"
        for one in (plugins, settings):
            one.mkdir(mode=0o755)
        shutil.copy(peer, plugins / "05-installed")
        # Neither is started: the one is no plug-in by its name, the other could be anybody's.
        shutil.copy(peer, plugins / "installed")
        shutil.copy(peer, plugins / "06-anybodys")
        (plugins / "06-anybodys").chmod(0o777)
        (settings / "installed.conf").write_text(json.dumps({"log": os.fspath(directory / "installed.log")}))
        extra = {
            "nri": {
                "enabled": True,
                "socket": os.fspath(directory / "nri.sock"),
                "plugin_dir": os.fspath(plugins),
                "config_dir": os.fspath(settings),
                "request_timeout": REQUEST_TIMEOUT,
                "registration_timeout": 20.0 * PATIENCE,
            }
        }
        with node(registry, extra=extra) as one:
            one.wait_ready()
            yield NriNode(one, directory, peer)


@pytest.fixture
async def caller(nri: NriNode, handler: str) -> AsyncIterator[Caller]:
    await asyncio.to_thread(nri.node.pull, BUSYBOX)
    async with CriClient(Path(nri.node.socket)) as client:
        caller = Caller(nri.node, client, handler)
        try:
            yield caller
        finally:
            listed = await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())
            for pod in listed.items:
                await caller.remove(pod.id)


OWN_PROCESSES = pb.LinuxContainerConfig(
    security_context=pb.LinuxContainerSecurityContext(namespace_options=pb.NamespaceOption(pid=pb.CONTAINER))
)
"""With which process 1 is the container's, and not the pod's."""


async def pid_of(caller: Caller, container_id: str) -> int:
    """The container's first process, as the host numbers it."""
    request = pb.ContainerStatusRequest(container_id=container_id, verbose=True)
    return int(json.loads((await caller.runtime.container_status(request)).info["info"])["pid"])


async def said(caller: Caller, container_id: str, *command: str) -> str:
    answer = await caller.exec(container_id, *command)
    return (answer.stdout + answer.stderr).decode()


@HANDLERS
async def test_plugins_hear_of_each_step(nri: NriNode, caller: Caller) -> None:
    name = f"steps-{caller.handler}"
    with nri.plugin("listener") as log:
        pod = await caller.pod(name)
        container_id = await caller.container(pod)
        await caller.start(container_id)
        limits = pb.LinuxContainerResources(cpu_shares=512)
        await caller.runtime.update_container_resources(
            pb.UpdateContainerResourcesRequest(container_id=container_id, linux=limits)
        )
        await caller.runtime.update_pod_sandbox_resources(
            pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod[0], resources=limits)
        )
        await caller.runtime.stop_container(pb.StopContainerRequest(container_id=container_id, timeout=0))
        await caller.runtime.remove_container(pb.RemoveContainerRequest(container_id=container_id))
        await caller.remove(pod[0])
        for one in (log, nri.installed):
            assert wait_for(one, "RemovePodSandbox", name) == [
                "RunPodSandbox",
                "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer",
                "UpdateContainer", "PostUpdateContainer", "UpdatePodSandbox", "PostUpdatePodSandbox",
                "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox",
            ]  # fmt: skip


@HANDLERS
async def test_a_plugin_that_comes_late_is_told_what_there_is(nri: NriNode, caller: Caller) -> None:
    pod = await caller.pod(f"late-{caller.handler}")
    container_id = await caller.container(pod)
    await caller.start(container_id)
    with nri.plugin("late") as log:
        found = written(log)
    (one,) = [item for item in found if item["event"] == "Synchronize" and item["id"]]
    assert (one["id"], one["state"]) == (container_id, "CONTAINER_RUNNING")
    (other,) = [item for item in found if item["event"] == "Synchronize" and item["pod"]]
    assert other["ips"]


@HANDLERS
async def test_what_a_plugin_adjusts(nri: NriNode, caller: Caller, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n")
    adjust = {
        "annotations": {"example.com/added": "yes"},
        "env": [{"key": "ADDED", "value": "by a plug-in"}, {"key": "-GONE"}],
        "args": ["", "sh", "-c", "while :; do sleep 0.2; done"],
        "mounts": [
            {
                "destination": "/given",
                "type": "bind",
                "source": os.fspath(tmp_path),
                "options": ["rbind", "ro"],
            },
            {"destination": "/memory", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "noexec"]},
        ],
        "rlimits": [{"type": "RLIMIT_CORE", "hard": 4096, "soft": 1024}],
        "linux": {
            "resources": {"memory": {"limit": {"value": str(96 << 20)}}, "pids": {"limit": "77"}},
            "oom_score_adj": {"value": "777"},
            "devices": [{"path": "/dev/nothing", "type": "c", "major": "1", "minor": "3"}],
            "seccomp_policy": {
                "default_action": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errno_ret": {"value": 1}}
                ],
            },
        },
    }
    with nri.plugin("adjuster", adjust=adjust):
        pod = await caller.pod(f"adjusted-{caller.handler}")
        envs = [pb.KeyValue(key="GONE", value=b"1"), pb.KeyValue(key="KEPT", value=b"2")]
        container_id = await caller.container(pod, "false", envs=envs, linux=OWN_PROCESSES)
        await caller.start(container_id)
        variables = (await said(caller, container_id, "env")).splitlines()
        assert "ADDED=by a plug-in" in variables
        assert "KEPT=2" in variables
        assert not [one for one in variables if one.startswith("GONE")]
        assert await said(caller, container_id, "cat", "/given/file") == "of the host\n"
        mounts = await said(caller, container_id, "cat", "/proc/mounts")
        assert re.search(r"^\S+ /given \S+ ro", mounts, re.M)
        assert re.search(r"^tmpfs /memory tmpfs \S*noexec", mounts, re.M)
        limits = await said(caller, container_id, "cat", "/proc/1/limits")
        assert re.search(r"Max core file size +1024 +4096", limits)
        assert (await said(caller, container_id, "cat", "/proc/1/oom_score_adj")).strip() == "777"
        assert await said(caller, container_id, "dd", "if=/dev/nothing", "count=1", "status=none") == ""
        assert "not permitted" in await said(caller, container_id, "mkdir", "/new")
        shown = await caller.status(container_id)
        assert shown.resources.linux.memory_limit_in_bytes == 96 << 20
        assert "example.com/added" not in shown.annotations


@HANDLERS
async def test_what_only_the_host_has(nri: NriNode, caller: Caller, tmp_path: Path) -> None:
    mark = tmp_path / "hooked"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"echo ran > {mark}"]}
    for number, (asked, what) in enumerate(
        (
            ({"hooks": {"create_runtime": [hook]}}, "hooks that run on the host"),
            ({"linux": {"cgroups_path": f"{nri.node.cgroup_parent}/chosen"}}, "control group"),
            ({"linux": {"namespaces": [{"type": "-uts"}]}}, "other namespaces"),
            (
                {"linux": {"devices": [{"path": "/dev/kmsg", "type": "c", "major": "1", "minor": "11"}]}},
                "/dev/kmsg",
            ),
        )
    ):
        with nri.plugin(f"host{number}", adjust=asked):
            pod = await caller.pod(f"host{number}-{caller.handler}")
            if caller.handler == "vm":
                with pytest.raises(OrlopError, match=rf"plug-in 10-host{number}: .*{what}.*'process'"):
                    await caller.container(pod)
            else:
                container_id = await caller.container(pod, linux=OWN_PROCESSES)
                await caller.start(container_id)
                if "chosen" in str(asked):
                    assert "/chosen" in Path(f"/proc/{await pid_of(caller, container_id)}/cgroup").read_text()
                if "kmsg" in str(asked):
                    assert "kmsg" in await said(caller, container_id, "ls", "/dev")
            await caller.remove(pod[0])
    assert mark.exists() == (caller.handler == "process")


@HANDLERS
async def test_two_plugins_that_set_the_same_are_in_conflict(nri: NriNode, caller: Caller) -> None:
    one, other = ({"env": [{"key": "X", "value": value}]} for value in "12")
    pod = await caller.pod(f"conflict-{caller.handler}")
    both = "plug-ins 20-one and 30-other both set Env X"
    with (
        nri.plugin("one", "20", adjust=one),
        nri.plugin("other", "30", adjust=other),
        pytest.raises(FailedPrecondition, match=both),
    ):
        await caller.container(pod)
    taken = {"env": [{"key": "-X"}, {"key": "X", "value": "2"}]}
    with nri.plugin("one", "20", adjust=one), nri.plugin("other", "30", adjust=taken):
        container_id = await caller.container(pod)
        await caller.start(container_id)
        assert "X=2" in (await said(caller, container_id, "env")).splitlines()


@HANDLERS
async def test_a_plugin_may_refuse(nri: NriNode, caller: Caller) -> None:
    with nri.plugin("no", fail="RunPodSandbox"):
        with pytest.raises(FailedPrecondition, match=r"10-no refuses RunPodSandbox.*asked to refuse"):
            await caller.pod(f"refused-{caller.handler}")
        listed = await caller.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())
        assert not listed.items
    with nri.plugin("no", fail="StartContainer"):
        container_id = await caller.container(await caller.pod(f"refused2-{caller.handler}"))
        with pytest.raises(FailedPrecondition, match="10-no refuses StartContainer"):
            await caller.start(container_id)
    with nri.plugin("judge", "90", reject="no variables here"):
        adjust = {"env": [{"key": "X", "value": "1"}]}
        with nri.plugin("adjuster", adjust=adjust):
            pod = await caller.pod(f"judged-{caller.handler}")
            with pytest.raises(FailedPrecondition, match=r"90-judge rejects.*no variables here"):
                await caller.container(pod)
        await caller.container(pod)


@HANDLERS
@pytest.mark.parametrize("how", ["hang", "die"])
async def test_a_plugin_that_fails_does_not_hold_the_node(nri: NriNode, caller: Caller, how: str) -> None:
    pod = await caller.pod(f"{how}-{caller.handler}")
    other = await caller.pod(f"{how}-other-{caller.handler}")
    with nri.plugin(how, **{how: "CreateContainer"}) as log:
        making = [asyncio.ensure_future(caller.container(one, name="c")) for one in (pod, other)]
        await asyncio.to_thread(wait_for, log, "CreateContainer")
        begun = time.monotonic()
        await caller.runtime.list_containers(pb.ListContainersRequest())
        await caller.runtime.version(pb.VersionRequest())
        assert time.monotonic() - begun < REQUEST_TIMEOUT / 2
        containers = await asyncio.gather(*making)
        # It hangs both of them once, not one after the other.
        assert heard(log).count("CreateContainer") == 1
        for container_id in containers:
            await caller.start(container_id)


@HANDLERS
async def test_a_plugin_changes_what_runs(nri: NriNode, caller: Caller) -> None:
    unasked = {"linux": {"resources": {"memory": {"limit": {"value": str(80 << 20)}}}}}
    with nri.plugin("changer", unasked=unasked) as log:
        container_id = await caller.container(await caller.pod(f"unasked-{caller.handler}"))
        await caller.start(container_id)
        assert "unasked 0 <nil>" in await asyncio.to_thread(wait_for, log, "unasked")
    assert (await caller.status(container_id)).resources.linux.memory_limit_in_bytes == 80 << 20
    wanted = {"linux": {"resources": {"memory": {"limit": {"value": str(70 << 20)}}}}}
    with nri.plugin("updater", update=[wanted]):
        limits = pb.LinuxContainerResources(memory_limit_in_bytes=90 << 20, cpu_shares=300)
        await caller.runtime.update_container_resources(
            pb.UpdateContainerResourcesRequest(container_id=container_id, linux=limits)
        )
    found = (await caller.status(container_id)).resources.linux
    assert (found.memory_limit_in_bytes, found.cpu_shares) == (70 << 20, 300)


@pytest.mark.parametrize("handler", ["process"])
async def test_after_a_restart_the_installed_ones_are_told_what_there_is(
    nri: NriNode, caller: Caller
) -> None:
    container_id = await caller.container(await caller.pod("restart"))
    await caller.start(container_id)
    nri.installed.unlink()
    nri.node.stop(signal.SIGKILL)
    nri.node.start()
    nri.node.wait_ready()
    await asyncio.to_thread(wait_for, nri.installed, "Synchronized")
    assert container_id in [one["id"] for one in written(nri.installed)]
