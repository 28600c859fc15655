"""Many tenants and pods on a real API server: ``python -m tests.tenants_api.many [TENANTS] [PODS OF EACH]``.

How long their operator takes for them and what memory it has, and what a node's agent needs to know them all.
The pods are admitted and counted, not run; they are on no node.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightkube import AsyncClient, KubeConfig
from lightkube.generic_resource import create_namespaced_resource

from orlop.tenants import names
from orlop.tenants.api import connect
from orlop.tenants.nodeview import NodeView
from tests.tenants.world import CLOSED
from tests.tenants_api.conftest import RUNTIMES, Ship, tenant
from tests.tenants_api.plane import Plane, plane

TENANTS, PODS = 200, 25
NODE = "many"
AT_ONCE = 16
LIMIT = 1800.0
QUOTA = {"pods": 100, "cpu": "100", "memory": "200Gi"}


def _name(number: int) -> str:
    return f"tenant{number:04}"


def _memory(process: int | str) -> float:
    """Resident memory, in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _processor(process: int) -> float:
    """Seconds of processor time."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Table:
    """Rows, printed as soon as they are known."""

    def __init__(self, title: str) -> None:
        print(f"| {title} | |\n|---|---|", flush=True)

    def row(self, what: str, value: str) -> None:
        print(f"| {what} | {value} |", flush=True)


@contextmanager
def _measured(table: Table, what: str, process: int) -> Iterator[None]:
    begin, worked = time.monotonic(), _processor(process)
    yield
    took, worked = time.monotonic() - begin, _processor(process) - worked
    table.row(what, f"{took:.0f} s, {worked:.0f} s of processor time, then {_memory(process):.0f} MB")


def _until(one: Plane, right: Callable[[dict[str, Any]], bool], count: int) -> None:
    """Wait until all tenants are right."""
    limit = time.monotonic() + LIMIT
    while True:
        items = (one.json("get", "tenants") or {}).get("items", [])
        if sum(right(item.get("status", {})) for item in items) == count:
            return
        assert time.monotonic() < limit, [item.get("status") for item in items][:3]
        time.sleep(1.0)


async def _make_pods(kubeconfig: Path, tenants: int, count: int) -> None:
    kind = create_namespaced_resource("", "v1", "Pod", "pods")
    client = AsyncClient(config=KubeConfig.from_file(kubeconfig))
    gate = asyncio.Semaphore(AT_ONCE)

    async def make(space: str, number: int) -> None:
        about = {
            "name": f"web-{number}",
            "namespace": space,
            "labels": {"app": "web"},
            "annotations": {names.ADDRESS: f"10.0.0.{number + 2}"},
        }
        container = {
            "name": "main",
            "image": "busybox",
            "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
        }
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": about}
        async with gate:
            spec = {"containers": [container], "runtimeClassName": "vm"}
            await client.create(kind({**body, "spec": spec}), namespace=space)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            for at in range(tenants):
                group.create_task(make(_name(at), number))


async def _agent(kubeconfig: Path) -> None:
    """Know what an agent knows; say how long that took, and the memory before and after."""
    before = _memory("self")
    async with connect(kubeconfig) as api:
        begin = time.monotonic()
        view = NodeView(api, NODE, closed=CLOSED, port=14789)
        await view.load()
        known = len(view.networks), sum(len(one.pods) for one in view.tenants.values())
        took = time.monotonic() - begin
    print(json.dumps({"known": known, "took": took, "before": before, "after": _memory("self")}))


def _look(one: Plane, tenants: int) -> dict[str, Any]:
    """Have an agent load everything, in a process of its own."""
    one.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    for number in range(tenants):
        body = json.dumps({"status": {"blocks": {NODE: "10.0.0.0/24"}}})
        patch = ["--subresource=status", "--type=merge", "-p", body]
        one.kubectl("patch", "network", _name(number), *patch)
    account = one.account("orlop-system", "orlop-tenants-agent", node=NODE)
    argv = [sys.executable, "-m", "tests.tenants_api.many", "agent", os.fspath(account.kubeconfig)]
    found: dict[str, Any] = json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    return found


def _measure(one: Plane, tenants: int, pods: int) -> None:
    printed = one.orlop("install")
    assert printed.returncode == 0, printed.stderr
    one.apply(printed.stdout, RUNTIMES.read_text())
    ship = Ship(one, one.account("orlop-system", "orlop-tenants"))
    network = {"cidr": "10.0.0.0/16"}
    items = [tenant(_name(number), quota=QUOTA, network=network) for number in range(tenants)]
    table = Table(f"{tenants} tenants with {pods} pods each, on a real API server")
    try:
        one.apply({"apiVersion": "v1", "kind": "List", "items": items})
        process = ship.start().process.pid
        with _measured(table, "the operator makes all tenants", process):
            _until(one, lambda status: bool(status.get("phase") == "Active"), tenants)
        with _measured(table, "their pods are made, and counted by it", process):
            asyncio.run(_make_pods(one.kubeconfig, tenants, pods))
            wanted = f"{pods}/{QUOTA['pods']}"
            _until(one, lambda status: bool(status.get("use", {}).get("pods") == wanted), tenants)
        ship.stop()
        process = ship.start().process.pid
        with _measured(table, "an operator that is started again makes one tenant more", process):
            ship.add(tenant("late"))
        found = _look(one, tenants)
        known = f"{found['known'][0]} networks and {found['known'][1]} pods"
        memory = f"{found['took']:.1f} s, {found['before']:.0f} MB before and {found['after']:.0f} MB after"
        table.row(f"an agent reads all of it: {known}", memory)
    finally:
        ship.stop()


def main() -> None:
    """Print a table."""
    if sys.argv[1:2] == ["agent"]:
        asyncio.run(_agent(Path(sys.argv[2])))
        return
    tenants, pods = (int(word) for word in (sys.argv[1:] or (TENANTS, PODS)))
    with plane() as one:
        _measure(one, tenants, pods)


if __name__ == "__main__":
    main()
