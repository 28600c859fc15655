"""The contract of CRI where runtimes often miss it, asked of a real daemon with both handlers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from orlop.client.calls import CriClient
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, OrlopError
from tests.node import BUSYBOX, Node
from tests.patience import PATIENCE

pytestmark = pytest.mark.parametrize("handler", ["vm", "process"])

SLEEP = ["sh", "-c", "trap 'exit 7' TERM; echo begun; while :; do sleep 0.2; done"]


class Caller:
    """A kubelet, in so far as it calls."""

    def __init__(self, node: Node, client: CriClient, handler: str) -> None:
        self.node = node
        self.runtime = client.runtime
        self.images = client.images
        self.handler = handler

    async def pod(self, name: str, **fields: Any) -> tuple[str, pb.PodSandboxConfig]:
        # Logs of another pod of the name, which are still there, are not this one's.
        uid = f"{name}-{self.handler}-{os.urandom(3).hex()}"
        logs = self.node.scratch / "logs" / uid
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, namespace="cri", uid=uid),
            log_directory=str(logs),
            linux=pb.LinuxPodSandboxConfig(cgroup_parent=self.node.cgroup_parent),
            labels={"test": name},
            **fields,
        )
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=self.handler)
        return (await self.runtime.run_pod_sandbox(request)).pod_sandbox_id, config

    async def container(
        self, pod: tuple[str, pb.PodSandboxConfig], *command: str, name: str = "main", **fields: Any
    ) -> str:
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=BUSYBOX),
            command=command or SLEEP,
            log_path=f"{name}.log",
            **fields,
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1])
        container_id: str = (await self.runtime.create_container(request)).container_id
        return container_id

    async def start(self, container_id: str) -> None:
        await self.runtime.start_container(pb.StartContainerRequest(container_id=container_id))

    async def status(self, container_id: str) -> pb.ContainerStatus:
        request = pb.ContainerStatusRequest(container_id=container_id)
        found: pb.ContainerStatus = (await self.runtime.container_status(request)).status
        return found

    async def exec(self, container_id: str, *command: str, timeout: int = 60) -> pb.ExecSyncResponse:
        request = pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=timeout)
        answer: pb.ExecSyncResponse = await self.runtime.exec_sync(request)
        return answer

    async def remove(self, pod_id: str) -> None:
        await self.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod_id))
        await self.runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60 * PATIENCE):
        while not condition():  # noqa: ASYNC110 - nothing would set an event
            await asyncio.sleep(0.05)


@pytest.fixture
async def caller(shared_node: Node, handler: str) -> AsyncIterator[Caller]:
    await asyncio.to_thread(shared_node.pull, BUSYBOX)
    async with CriClient(Path(shared_node.socket)) as client:
        caller = Caller(shared_node, client, handler)
        try:
            yield caller
        finally:
            listed = await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())
            for pod in listed.items:
                if pod.metadata.namespace == "cri":
                    await caller.remove(pod.id)


async def test_stop_and_remove_are_idempotent(caller: Caller) -> None:
    runtime = caller.runtime
    pod = await caller.pod("idempotent")
    container_id = await caller.container(pod)
    await caller.start(container_id)
    # Only once it says so has the shell set its trap.
    log = Path((await caller.status(container_id)).log_path)
    await until(lambda: log.exists() and b"begun" in log.read_bytes())
    stop = pb.StopContainerRequest(container_id=container_id, timeout=10)
    for _ in range(2):
        await runtime.stop_container(stop)
    status = await caller.status(container_id)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 7, "Error")
    for _ in range(2):
        await runtime.remove_container(pb.RemoveContainerRequest(container_id=container_id))
        await runtime.stop_container(stop)
    for _ in range(2):
        await runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod[0]))
    for _ in range(2):
        await runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod[0]))
    await runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod[0]))
    with pytest.raises(NotFound):
        await runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=pod[0]))


async def test_a_repeated_run_is_the_same_pod_and_another_wish_is_refused(caller: Caller) -> None:
    runtime, handler = caller.runtime, caller.handler
    pod_id, config = await caller.pod("twice")
    request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
    assert (await runtime.run_pod_sandbox(request)).pod_sandbox_id == pod_id
    container_id = await caller.container((pod_id, config))
    assert await caller.container((pod_id, config)) == container_id
    with pytest.raises(OrlopError):
        await caller.container((pod_id, config), "another", "command")
    request.config.labels["other"] = "wish"
    with pytest.raises(OrlopError):
        await runtime.run_pod_sandbox(request)


async def test_exec_sync(caller: Caller) -> None:
    pod = await caller.pod("exec")
    container_id = await caller.container(pod)
    with pytest.raises(FailedPrecondition):
        await caller.exec(container_id, "true")
    await caller.start(container_id)
    answer = await caller.exec(container_id, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 5)
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await caller.exec(container_id, "sleep", "6000", timeout=1)
    assert time.monotonic() - begin < 60 * PATIENCE
    script = "while ps -o args | grep -q '[s]leep 6000'; do sleep 0.1; done"
    assert (await caller.exec(container_id, "sh", "-c", script)).exit_code == 0
    answer = await caller.exec(container_id, "head", "-c", "3000000", "/dev/zero")
    assert answer.stdout == bytes(3_000_000)


async def test_lists_and_streamed_lists_agree(caller: Caller) -> None:
    runtime = caller.runtime
    pod = await caller.pod("lists")
    ids = {await caller.container(pod, name=f"c{number}") for number in range(3)}
    await caller.start(min(ids))
    chosen = pb.ContainerFilter(pod_sandbox_id=pod[0])
    listed = (await runtime.list_containers(pb.ListContainersRequest(filter=chosen))).containers
    pages = [page async for page in runtime.stream_containers(pb.StreamContainersRequest(filter=chosen))]
    assert [item for page in pages for item in page.containers] == list(listed)
    assert {item.id for item in listed} == ids
    chosen.state.state = pb.CONTAINER_RUNNING
    running = (await runtime.list_containers(pb.ListContainersRequest(filter=chosen))).containers
    assert [item.id for item in running] == [min(ids)]
    pods = pb.PodSandboxFilter(label_selector={"test": "lists"}, id=pod[0][:13])
    (found,) = (await runtime.list_pod_sandbox(pb.ListPodSandboxRequest(filter=pods))).items
    (page,) = [page async for page in runtime.stream_pod_sandboxes(pb.StreamPodSandboxesRequest(filter=pods))]
    assert list(page.pod_sandboxes) == [found]
    assert found.runtime_handler == caller.handler
    images = (await caller.images.list_images(pb.ListImagesRequest())).images
    streamed = [page async for page in caller.images.stream_images(pb.StreamImagesRequest())]
    assert [item for page in streamed for item in page.images] == list(images)


async def test_events_tell_the_life_of_a_pod(caller: Caller) -> None:
    events = caller.runtime.get_container_events(pb.GetEventsRequest())
    seen: list[pb.ContainerEventResponse] = []

    async def collect() -> None:
        async for event in events:
            if event.pod_sandbox_status.metadata.namespace == "cri":
                seen.append(event)

    task = asyncio.create_task(collect())
    # Nothing says from when on events are told, but an event.
    async with asyncio.timeout(60 * PATIENCE):
        while not seen:
            await caller.pod(f"before-{os.urandom(3).hex()}")
            await asyncio.sleep(0.1)
    pod = await caller.pod("events")
    container_id = await caller.container(pod, "true")
    await caller.start(container_id)
    ended = container_id, pb.CONTAINER_STOPPED_EVENT
    await until(lambda: ended in [(item.container_id, item.container_event_type) for item in seen])
    await caller.remove(pod[0])
    last = pod[0], pb.CONTAINER_DELETED_EVENT
    await until(lambda: last in [(item.container_id, item.container_event_type) for item in seen])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    mine = [item.container_event_type for item in seen if item.container_id == container_id]
    assert mine == [
        pb.CONTAINER_CREATED_EVENT,
        pb.CONTAINER_STARTED_EVENT,
        pb.CONTAINER_STOPPED_EVENT,
        pb.CONTAINER_DELETED_EVENT,
    ]
    stopped = next(item for item in seen if ended == (item.container_id, item.container_event_type))
    states = {item.id: item.state for item in stopped.containers_statuses}
    assert states == {container_id: pb.CONTAINER_EXITED}


async def test_statistics_and_metrics(caller: Caller) -> None:
    runtime = caller.runtime
    pod = await caller.pod("stats")
    container_id = await caller.container(pod)
    await caller.start(container_id)
    await caller.exec(container_id, "dd", "if=/dev/zero", "of=/blob", "bs=1M", "count=3")
    one = (await runtime.container_stats(pb.ContainerStatsRequest(container_id=container_id))).stats
    assert one.cpu.timestamp > 0 and one.cpu.usage_core_nano_seconds.value > 0
    assert one.memory.working_set_bytes.value > 100_000
    assert one.writable_layer.used_bytes.value >= 3 << 20
    use = (await runtime.pod_sandbox_stats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod[0]))).stats
    assert use.linux.network.default_interface.name == "eth0"
    assert [item.attributes.id for item in use.linux.containers] == [container_id]
    assert use.linux.memory.working_set_bytes.value >= one.memory.working_set_bytes.value // 2
    described = (await runtime.list_metric_descriptors(pb.ListMetricDescriptorsRequest())).descriptors
    keys = {item.name: len(item.label_keys) for item in described}
    metrics = (await runtime.list_pod_sandbox_metrics(pb.ListPodSandboxMetricsRequest())).pod_metrics
    (found,) = [item for item in metrics if item.pod_sandbox_id == pod[0]]
    values = [*found.metrics, *found.container_metrics[0].metrics]
    assert all(keys[item.name] == len(item.label_values) for item in values)
    assert found.container_metrics[0].container_id == container_id
    memory = {
        item.name.removeprefix("orlop_pod_memory_"): item.value.value
        for item in found.metrics
        if item.name.startswith("orlop_pod_memory_")
    }
    assert memory.keys() == {"private_bytes", "shared_bytes", "used_bytes"}
    if caller.handler == "vm":
        assert all(1 << 20 < value < 1 << 30 for value in memory.values()), memory
    else:
        assert memory["private_bytes"] >= memory["used_bytes"] > 100_000
        assert memory["shared_bytes"] == 0


async def test_limits_can_be_changed(caller: Caller) -> None:
    pod = await caller.pod("limits")
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_period=100_000, cpu_quota=50_000)
    container_id = await caller.container(pod, linux=pb.LinuxContainerConfig(resources=limits))
    await caller.start(container_id)
    wanted = pb.LinuxContainerResources(memory_limit_in_bytes=96 << 20, cpu_period=100_000, cpu_quota=80_000)
    await caller.runtime.update_container_resources(
        pb.UpdateContainerResourcesRequest(container_id=container_id, linux=wanted)
    )
    shown = (await caller.status(container_id)).resources.linux
    assert (shown.memory_limit_in_bytes, shown.cpu_quota) == (96 << 20, 80_000)
    await caller.runtime.update_pod_sandbox_resources(
        pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod[0], resources=wanted)
    )


async def test_a_log_is_reopened(caller: Caller) -> None:
    pod = await caller.pod("log")
    container_id = await caller.container(pod, "sh", "-c", "while :; do echo tick; sleep 0.2; done")
    await caller.start(container_id)
    path = Path((await caller.status(container_id)).log_path)

    def ticks() -> bool:
        return path.exists() and b"tick" in path.read_bytes()

    await until(ticks)
    path.rename(path.with_suffix(".1"))
    await caller.runtime.reopen_container_log(pb.ReopenContainerLogRequest(container_id=container_id))
    await until(ticks)
    await caller.runtime.stop_container(pb.StopContainerRequest(container_id=container_id))
    with pytest.raises(OrlopError):
        await caller.runtime.reopen_container_log(pb.ReopenContainerLogRequest(container_id=container_id))


async def test_a_log_that_was_not_renamed_keeps_its_lines(caller: Caller) -> None:
    pod = await caller.pod("unrotated")
    container_id = await caller.container(
        pod, "sh", "-c", "echo first; while :; do sleep 0.1; echo tick; done"
    )
    await caller.start(container_id)
    path = Path((await caller.status(container_id)).log_path)
    await until(lambda: path.exists() and b"tick" in path.read_bytes())
    assert path.stat().st_mode & 0o777 == 0o640
    await caller.runtime.reopen_container_log(pb.ReopenContainerLogRequest(container_id=container_id))
    kept = path.read_bytes()
    assert b"first" in kept
    await until(lambda: len(path.read_bytes()) > len(kept))
    path.rename(path.with_suffix(".1"))
    await caller.runtime.reopen_container_log(pb.ReopenContainerLogRequest(container_id=container_id))
    assert path.stat().st_mode & 0o777 == 0o640


async def test_the_end_of_a_log_without_a_newline_has_none(caller: Caller) -> None:
    pod = await caller.pod("no-newline")
    container_id = await caller.container(pod, "sh", "-c", "echo one; printf DONE; printf oops >&2")
    await caller.start(container_id)
    path = Path((await caller.status(container_id)).log_path)
    async with asyncio.timeout(60 * PATIENCE):
        while (await caller.status(container_id)).state != pb.CONTAINER_EXITED:  # noqa: ASYNC110 - a poll
            await asyncio.sleep(0.05)

    def read(stream: str) -> str:
        """As a kubelet reads: only a line that is whole has a newline."""
        entries = [line.split(" ", 3) for line in path.read_text().splitlines()]
        return "".join(
            text + "\n" * (tag == "F")
            for _, name, tag, text in (one + [""] * (4 - len(one)) for one in entries)
            if name == stream
        )

    assert (read("stdout"), read("stderr")) == ("one\nDONE", "oops")


async def test_a_container_is_inspected(caller: Caller) -> None:
    pod = await caller.pod("inspected")
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20)
    container_id = await caller.container(pod, linux=pb.LinuxContainerConfig(resources=limits))

    async def info() -> Any:
        request = pb.ContainerStatusRequest(container_id=container_id, verbose=True)
        return json.loads((await caller.runtime.container_status(request)).info["info"])

    await caller.start(container_id)
    found = await info()
    assert found["runtimeSpec"]["process"]["args"] == SLEEP
    assert found["runtimeSpec"]["linux"]["resources"]["memory"]["limit"] == 64 << 20
    command = Path(f"/proc/{found['pid']}/cmdline")
    # The runtime answers a start before the process is the program that was asked for.
    program = b"qemu" if caller.handler == "vm" else b"trap 'exit 7' TERM"
    await until(lambda: program in command.read_bytes())
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod[0], verbose=True)
    answer = await caller.runtime.pod_sandbox_status(request)
    whole = json.loads(answer.info["info"])
    holder = Path(f"/proc/{whole['pid']}/cmdline")
    await until(lambda: (b"qemu" if caller.handler == "vm" else b"pause") in holder.read_bytes())
    await caller.runtime.stop_container(pb.StopContainerRequest(container_id=container_id, timeout=0))
    ended = await info()
    assert ended["pid"] == 0 and ended["runtimeSpec"]["process"]["args"] == SLEEP


@pytest.mark.parametrize(
    ("command", "reason"),
    [("no-such-program", "not found"), ("/no/such", "no such file"), ("/etc/passwd", "permission denied")],
)
async def test_a_bad_command_is_told_by_the_start(caller: Caller, command: str, reason: str) -> None:
    pod = await caller.pod("bad-command")
    container_id = await caller.container(pod, command)
    with pytest.raises(InvalidArgument, match=reason) as refused:
        await caller.start(container_id)
    status = await caller.status(container_id)
    assert (status.state, status.reason, status.exit_code) == (pb.CONTAINER_EXITED, "StartError", 128)
    assert status.message == str(refused.value) and command in status.message
    assert container_id[:12] not in status.message, "the same failure must read the same each time"
    with pytest.raises(FailedPrecondition):
        await caller.start(container_id)
    await caller.runtime.remove_container(pb.RemoveContainerRequest(container_id=container_id))


async def test_a_bad_command_of_an_exec_is_the_same_error_for_each_handler(caller: Caller) -> None:
    container_id = await caller.container(await caller.pod("bad-exec"))
    await caller.start(container_id)
    for command in ("no-such-program", "/etc/passwd"):
        with pytest.raises(InvalidArgument, match=command):
            await caller.exec(container_id, command)


async def test_a_client_that_names_no_masked_paths_gets_the_usual_ones(caller: Caller) -> None:
    pod = await caller.pod("masked")
    config = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(privileged=True))
    script = "grep -cE ' /(proc/(kcore|keys|sys)|sys/firmware) ' /proc/mounts; : >/proc/sys/kernel/domainname"
    for name, linux, hidden in (("plain", pb.LinuxContainerConfig(), True), ("privileged", config, False)):
        container_id = await caller.container(pod, name=name, linux=linux)
        await caller.start(container_id)
        answer = await caller.exec(container_id, "sh", "-c", script)
        assert (int(answer.stdout) >= 2) is hidden, answer
        assert (b"Read-only file system" in answer.stderr) is hidden, answer


async def test_a_container_that_cannot_be_made_leaves_no_log(caller: Caller) -> None:
    pod = await caller.pod("no-log")
    context = pb.LinuxContainerSecurityContext(run_as_username="nobody-of-this-name")
    with pytest.raises(OrlopError, match="nobody-of-this-name"):
        await caller.container(pod, linux=pb.LinuxContainerConfig(security_context=context))
    logs = Path(pod[1].log_directory)
    assert not logs.exists() or not list(logs.iterdir())


async def test_a_host_path_that_is_missing_becomes_a_directory(caller: Caller, tmp_path: Path) -> None:
    absent = tmp_path / "a" / "b"
    volume = pb.Mount(container_path="/v", host_path=str(absent))
    container_id = await caller.container(await caller.pod("absent"), mounts=[volume])
    await caller.start(container_id)
    await caller.exec(container_id, "touch", "/v/written")
    assert [path.name for path in absent.iterdir()] == ["written"]
    assert absent.stat().st_mode & 0o777 == 0o755


async def test_what_mount_options_forbid(caller: Caller, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    volumes = [
        pb.Mount(container_path="/plain", host_path=str(tmp_path)),
        pb.Mount(
            container_path="/fixed", host_path=str(tmp_path), mount_options=["nosuid", "noexec", "nodev"]
        ),
    ]
    pod = await caller.pod("options")
    container_id = await caller.container(pod, mounts=volumes)
    await caller.start(container_id)
    assert (await caller.exec(container_id, "/plain/script")).exit_code == 0
    assert (await caller.exec(container_id, "sh", "-c", "/fixed/script")).exit_code == 126
    mounts = (await caller.exec(container_id, "cat", "/proc/mounts")).stdout.decode()
    (fixed,) = (line.split()[3].split(",") for line in mounts.splitlines() if line.split()[1] == "/fixed")
    assert {"nosuid", "noexec", "nodev"} <= set(fixed)
    shown = {item.container_path: item for item in (await caller.status(container_id)).mounts}
    assert list(shown["/fixed"].mount_options) == ["nodev", "noexec", "nosuid"]
    with pytest.raises(InvalidArgument, match=r"mount_options.*dirsync"):
        wrong = pb.Mount(container_path="/v", host_path=str(tmp_path), mount_options=["dirsync"])
        await caller.container(pod, mounts=[wrong], name="wrong")


async def test_special_files_of_the_host_are_refused_where_they_lead_nowhere(
    caller: Caller, tmp_path: Path
) -> None:
    pod = await caller.pod("special")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path, kind in (("/dev/null", "character device"), ("fifo", "FIFO"), ("socket", "socket")):
            volume = pb.Mount(container_path="/v", host_path=str(tmp_path / path))
            # What connects to a socket is led to the host's.
            if caller.handler == "vm" and kind != "socket":
                with pytest.raises(FailedPrecondition, match=f"host's {kind}"):
                    await caller.container(pod, mounts=[volume])
            else:
                await caller.container(pod, mounts=[volume], name=kind)


async def test_limits_of_huge_pages_that_the_host_does_not_count(caller: Caller) -> None:
    limits = pb.LinuxContainerResources(
        hugepage_limits=[pb.HugepageLimit(page_size=size, limit=0) for size in ("2MB", "1GB")]
    )
    container_id = await caller.container(
        await caller.pod("huge"), linux=pb.LinuxContainerConfig(resources=limits)
    )
    await caller.start(container_id)


async def test_what_cannot_be_is_refused_with_the_field(caller: Caller) -> None:
    pod = await caller.pod("refused")
    impossible = pb.Mount(container_path="/v", host_path="/proc/no/such/place")
    with pytest.raises(FailedPrecondition, match="/proc/no/such/place"):
        await caller.container(pod, mounts=[impossible])
    with pytest.raises(NotFound, match="image"):
        request = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="x"), image=pb.ImageSpec(image="localhost/none:1")
        )
        await caller.runtime.create_container(
            pb.CreateContainerRequest(pod_sandbox_id=pod[0], config=request, sandbox_config=pod[1])
        )
    context = pb.LinuxContainerSecurityContext(run_as_group=pb.Int64Value(value=5))
    with pytest.raises(InvalidArgument, match="run_as_group"):
        await caller.container(pod, linux=pb.LinuxContainerConfig(security_context=context))
    with pytest.raises(InvalidArgument, match="runtime handler"):
        config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="n", namespace="cri", uid="x"))
        await caller.runtime.run_pod_sandbox(
            pb.RunPodSandboxRequest(config=config, runtime_handler="no-such-handler")
        )
    assert not (
        await caller.images.image_status(pb.ImageStatusRequest(image=pb.ImageSpec(image="none")))
    ).HasField("image")


async def test_user_and_stop_signal_are_shown(caller: Caller) -> None:
    pod = await caller.pod("shown")
    context = pb.LinuxContainerSecurityContext(
        run_as_user=pb.Int64Value(value=1234),
        run_as_group=pb.Int64Value(value=56),
        supplemental_groups=[78],
        supplemental_groups_policy=pb.Strict,
    )
    container_id = await caller.container(
        pod, stop_signal=pb.SIGNAL_SIGUSR1, linux=pb.LinuxContainerConfig(security_context=context)
    )
    await caller.start(container_id)
    status = await caller.status(container_id)
    assert (status.user.linux.uid, status.user.linux.gid) == (1234, 56)
    assert set(status.user.linux.supplemental_groups) == {56, 78}
    assert status.stop_signal == pb.SIGNAL_SIGUSR1
    assert status.image.image == BUSYBOX
    assert (await caller.exec(container_id, "id", "-u")).stdout == b"1234\n"
