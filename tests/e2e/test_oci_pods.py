"""Pods whose caller names the sandbox and keeps the namespaces itself, as CRI-O does, without CRI-O."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orlop.host.cgroups import Cgroup
from orlop.oci.command import templates
from tests.e2e.outside import Net, network
from tests.e2e.test_oci_bundles import PATIENT, Runtime
from tests.node import Node


class Pod:
    """A pod: its network namespace and control group, and bundles of containers in it."""

    def __init__(self, runtime: Runtime, node: Node, net: Net) -> None:
        self.runtime = runtime
        self.net = net
        self.id = os.urandom(4).hex()
        self.group = f"{node.cgroup_parent}/pod{self.id}"

    def name(self, what: str) -> str:
        """The id of a container of this pod."""
        return f"{what}-{self.id}"

    def bundle(self, what: str, *args: str) -> str:
        """The bundle of its sandbox or of a container."""
        name, linux = self.name(what), templates.CONFIG["linux"]
        namespaces = [one for one in linux["namespaces"] if one["type"] != "network"]
        namespaces.append({"type": "network", "path": os.fspath(self.net.path)})
        return self.runtime.bundle(
            name,
            *args,
            linux=linux | {"namespaces": namespaces, "cgroupsPath": f"{self.group}/{name}"},
            annotations={
                "io.kubernetes.cri-o.ContainerType": "sandbox" if what == "sandbox" else "container",
                "io.kubernetes.cri-o.SandboxID": self.name("sandbox"),
            },
        )

    def create(self, what: str, *args: str) -> None:
        """Make one."""
        self.runtime("create", "-b", self.bundle(what, *(args or ("sleep", "600"))), self.name(what))

    def start(self, what: str) -> None:
        """Start one."""
        self.runtime("start", self.name(what))

    def delete(self, what: str) -> None:
        """Remove one."""
        self.runtime("delete", "--force", self.name(what))

    def says(self, what: str, *args: str) -> str:
        """What a command says in one."""
        return self.runtime("exec", self.name(what), *args).out.strip()

    def status(self, what: str) -> str:
        """Whether one runs."""
        return str(json.loads(self.runtime("state", self.name(what)).out)["status"])

    def groups(self) -> list[str]:
        """The names of the control groups below the pod's own, in all hierarchies."""
        tops = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
        places = [top / self.group.strip("/") for top in tops]
        found = (one for place in places if place.is_dir() for one in place.iterdir())
        return sorted({one.name for one in found if one.is_dir()})


@pytest.fixture
def pod(shared_node: Node, tmp_path: Path) -> Iterator[Pod]:
    runtime = Runtime(shared_node, tmp_path)
    with network() as net:
        one = Pod(runtime, shared_node, net)
        try:
            yield one
        finally:
            for name in runtime.ids():
                if name.endswith(one.id):
                    runtime("delete", "--force", name)
        until(lambda: not one.groups(), "its control groups stay")
        Cgroup(one.group).remove()


def until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.1)


BOOT = ("cat", "/proc/sys/kernel/random/boot_id")


def test_containers_made_at_once_are_in_one_vm_which_the_first_does_not_take_along(pod: Pod) -> None:
    names = ("one", "two")
    making = [
        pod.runtime.background("create", "-b", pod.bundle(what, "sleep", "600"), pod.name(what))
        for what in names
    ]
    assert [one.wait(PATIENT) for one in making] == [0, 0]
    for what in names:
        pod.start(what)
    (kernel,) = {pod.says(what, *BOOT) for what in names}
    # The machine is in the pod's control group, and not in that of a container.
    assert len([name for name in pod.groups() if name.startswith("orlop-vm-")]) == 1
    pod.delete("one")
    assert pod.name("one") not in pod.groups()
    assert pod.says("two", *BOOT) == kernel
    assert pod.net.address in pod.says("two", "ip", "addr")
    pod.create("three")
    pod.start("three")
    assert pod.says("three", *BOOT) == kernel


def test_a_pod_ends_with_its_sandbox_and_outlives_the_daemon(pod: Pod, shared_node: Node) -> None:
    pod.create("sandbox")
    pod.start("sandbox")
    kernel = pod.says("sandbox", *BOOT)
    cut_short = pod.runtime.background("create", "-b", pod.bundle("cut", "sleep", "600"), pod.name("cut"))
    shared_node.kill()
    try:
        cut_short.wait(PATIENT)
    finally:
        shared_node.start()
        shared_node.wait_ready()
    pod.create("member")
    pod.start("member")
    assert pod.says("member", *BOOT) == kernel
    pod.create("waiting")
    pod.runtime("kill", pod.name("sandbox"), "KILL")
    for what in ("sandbox", "member", "waiting"):
        until(lambda what=what: pod.status(what) == "stopped", f"{what} does not end")  # type: ignore[misc]
    done = pod.runtime.ends("create", "-b", pod.bundle("late", "sleep", "600"), pod.name("late"))
    assert done.code and f"its sandbox {pod.name('sandbox')} does not run any more" in done.err, done
