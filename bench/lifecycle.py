"""The life of one pod, timed call by call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from bench.client import IMAGE, Caller, container_config, pod_config
from orlop.cri.api import runtime_v1_pb2 as pb

SLEEP = ("sleep", "1000000")
Times = dict[str, float]


@contextmanager
def _timed(times: Times, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[name] = (time.perf_counter() - start) * 1000


@contextmanager
def _ended_on_failure(client: Caller, pod_id: str) -> Iterator[None]:
    """A runtime's containers outlive it: what failed must not stay on the machine."""
    try:
        yield
    except BaseException:
        end_pod(client, pod_id, {})
        raise


def start_pod(client: Caller, handler: str, name: str, logs: str, times: Times) -> tuple[str, str]:
    """A pod with one running container; adds the milliseconds of each call and their sum, ``ready``."""
    pod = pod_config(name, logs)
    container = container_config("main", *SLEEP)
    begin = time.perf_counter()
    with _timed(times, "RunPodSandbox"):
        request = pb.RunPodSandboxRequest(config=pod, runtime_handler=handler)
        pod_id = client.call("RunPodSandbox", request).pod_sandbox_id
    with _ended_on_failure(client, pod_id):
        with _timed(times, "CreateContainer"):
            create = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=container, sandbox_config=pod)
            container_id = client.call("CreateContainer", create).container_id
        with _timed(times, "StartContainer"):
            client.call("StartContainer", pb.StartContainerRequest(container_id=container_id))
    times["ready"] = (time.perf_counter() - begin) * 1000
    return pod_id, container_id


def exec_true(client: Caller, container_id: str, times: Times) -> None:
    """The median of five ExecSync of ``true``; the first may fault pages in and counts as itself."""
    samples = []
    for _ in range(5):
        begin = time.perf_counter()
        request = pb.ExecSyncRequest(container_id=container_id, cmd=["true"], timeout=30)
        done = client.call("ExecSync", request)
        samples.append((time.perf_counter() - begin) * 1000)
        if done.exit_code != 0:
            raise RuntimeError(f"ExecSync of true ended with {done.exit_code}: {done.stderr!r}")
    times["ExecSync first"] = samples[0]
    times["ExecSync"] = sorted(samples)[2]


def end_pod(client: Caller, pod_id: str, times: Times) -> None:
    """Stop and remove, as a kubelet does when the pod is deleted with no grace."""
    begin = time.perf_counter()
    with _timed(times, "StopPodSandbox"):
        client.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    with _timed(times, "RemovePodSandbox"):
        client.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
    times["stop+remove"] = (time.perf_counter() - begin) * 1000


def whole_life(client: Caller, handler: str, name: str, logs: str) -> Times:
    """Start, exec, stop, remove."""
    times: Times = {}
    pod_id, container_id = start_pod(client, handler, name, logs, times)
    with _ended_on_failure(client, pod_id):
        exec_true(client, container_id, times)
    end_pod(client, pod_id, times)
    return times


def start_many(
    client: Caller, handler: str, prefix: str, logs: str, count: int, parallel: int
) -> tuple[list[str], float, list[Times]]:
    """``count`` pods, ``parallel`` at a time: their ids, the seconds for all, each one's times.

    Ids and times are in the order of the starts. When one fails, those that started are ended.
    """
    pods: dict[int, tuple[str, Times]] = {}

    def one(index: int) -> None:
        times: Times = {}
        pod_id, _ = start_pod(client, handler, f"{prefix}-{index}", logs, times)
        pods[index] = pod_id, times

    begin = time.perf_counter()
    try:
        with ThreadPoolExecutor(parallel) as pool:
            list(pool.map(one, range(count)))
    except BaseException:
        end_many(client, [pod for pod, _ in pods.values()], parallel)
        raise
    spent = time.perf_counter() - begin
    ordered = [pods[index] for index in range(count)]
    return [pod for pod, _ in ordered], spent, [times for _, times in ordered]


def end_many(client: Caller, pods: list[str], parallel: int) -> float:
    """Stop and remove them all; the seconds it took."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(lambda pod: end_pod(client, pod, {}), pods))
    return time.perf_counter() - begin


def pull(client: Caller) -> None:
    """Have the image there before anything is timed."""
    client.call("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=IMAGE)))
