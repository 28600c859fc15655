"""A pod of two containers in one VM, by hand: crictl, CRI-O, and conmon with ``orlop-oci`` or the shim."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.host.cgroups import Cgroup
from orlop.shim import places
from tests.crio.daemon import Crio, crio
from tests.node import BUSYBOX, Node
from tests.patience import PATIENCE

LIMIT = 180 * PATIENCE
OWN_PROCESSES = {"security_context": {"namespace_options": {"pid": 1}}}
"""As Kubernetes asks for pods unless told otherwise; for others CRI-O always makes a sandbox container."""

BOOT = ("cat", "/proc/sys/kernel/random/boot_id")


@pytest.fixture(scope="module", params=[True, False], ids=["sandbox", "dropped"])
def peer(request: pytest.FixtureRequest, shared_node: Node, registry: str) -> Iterator[Crio]:
    with (
        tempfile.TemporaryDirectory(prefix="orlop-crio-") as name,
        crio(Path(name), shared_node, registry, infra=request.param) as one,
    ):
        one.cri("pull", BUSYBOX)
        yield one


@pytest.fixture(params=["orlop", "orlop-vm"])
def handler(request: pytest.FixtureRequest, peer: Crio) -> str:
    if request.param == "orlop-vm" and not peer.infra:
        pytest.skip("for shims CRI-O makes a sandbox container in any case")
    name: str = request.param
    return name


class Life:
    """A pod, and what is done with it."""

    def __init__(self, peer: Crio, handler: str, place: Path, node: Node) -> None:
        self._peer = peer
        self._place = place
        # A kubelet makes and removes the pod's group.
        self.group = Cgroup(f"{node.cgroup_parent}/crio{os.urandom(3).hex()}")
        self.group.create()
        self._pod: dict[str, Any] = {
            "metadata": {"name": "life", "namespace": "test", "uid": os.urandom(4).hex(), "attempt": 0},
            "log_directory": os.fspath(place),
            "linux": {"cgroup_parent": self.group.path, **OWN_PROCESSES},
        }
        self.id = peer.cri("runp", "--runtime", handler, self._file("pod", self._pod)).out.strip()

    def _file(self, name: str, value: Any) -> Path:
        file = self._place / f"{name}.json"
        file.write_text(json.dumps(value))
        return file

    def run(self, name: str, *command: str) -> str:
        """Make and start a container; its id."""
        config = {
            "metadata": {"name": name},
            "image": {"image": BUSYBOX},
            "command": list(command),
            "log_path": f"{name}.log",
            "linux": OWN_PROCESSES,
        }
        pod = self._file("pod", self._pod)
        found = self._peer.cri("create", self.id, self._file(name, config), pod).out.strip()
        self._peer.cri("start", found)
        return found

    def says(self, container: str, *command: str) -> str:
        """What a command says in a container."""
        return self._peer.cri("exec", "--sync", container, *command).out.strip()

    def log(self, name: str) -> str:
        """What is in a container's log file."""
        file = self._place / f"{name}.log"
        return file.read_text() if file.exists() else ""

    def status(self, container: str) -> dict[str, Any]:
        """A container's status."""
        found: dict[str, Any] = json.loads(self._peer.cri("inspect", container).out)["status"]
        return found


def until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.1)


def test_two_containers_of_a_pod_are_in_one_vm(
    peer: Crio, handler: str, shared_node: Node, tmp_path: Path
) -> None:
    life = Life(peer, handler, tmp_path, shared_node)
    assert (life.id in peer.containers()) == (peer.infra and handler == "orlop")
    first = life.run("first", "sh", "-c", "echo out; echo err >&2; sleep 1000")
    second = life.run("second", "sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done")
    until(lambda: "stderr F err" in life.log("first"), "it says nothing")
    until(lambda: "stdout F up" in life.log("second"), "it says nothing")
    (kernel,) = {life.says(one, *BOOT) for one in (first, second)}
    assert kernel != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert "stdout F out" in life.log("first")
    address = json.loads(peer.cri("inspectp", life.id).out)["status"]["network"]["ip"]
    assert all(address in life.says(one, "ip", "addr") for one in (first, second))
    failed = peer.cri("exec", "--sync", first, "sh", "-c", "exit 4", check=False)
    assert failed.code and "exited with 4" in failed.err, failed
    # The first goes first, and the second has its machine still.
    peer.cri("stop", "--timeout", "1", first)
    peer.cri("rm", first)
    assert life.says(second, *BOOT) == kernel
    shared_node.kill()
    shared_node.start()
    shared_node.wait_ready()
    assert life.says(second, *BOOT) == kernel
    peer.stop()
    peer.start()
    assert life.says(second, *BOOT) == kernel
    peer.cri("stop", "--timeout", "60", second)
    assert life.status(second)["exitCode"] == 3
    # One that ends when it is asked to: CRI-O waits for the others as long as its caller waits for it.
    third = life.run("third", "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
    assert address in life.says(third, "ip", "addr")
    peer.cri("stopp", life.id)
    assert life.status(third)["state"] == "CONTAINER_EXITED"
    peer.cri("rmp", life.id)
    life.group.remove()
    # CRI-O closes no connection to a shim: who keeps those has to see that nobody needs them any more.
    until(lambda: not Path(shared_node.scratch, "state", places.HOLD_SOCKET).exists(), "the keeper stays")
    shared_node.wait_no_leaks_but_warm(60 * PATIENCE)
