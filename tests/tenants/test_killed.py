"""Agents and callers that are killed at each step: nothing stays, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orlop.net.plugins import PluginFailed
from orlop.tenantnet import program
from orlop.tenantnet.door import AgentDoor
from tests.tenants.agents import ADDING, REMOVING, Desk, call, desk, pod_namespace
from tests.tenants.test_agent import bare_world, left, one_desk, reached
from tests.tenants.world import LIMIT, World, command

__all__ = ["bare_world", "one_desk"]


@asynccontextmanager
async def _doomed(
    world: Path, state: Path, step: str, when: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """An agent that is killed at a step once it is armed."""
    argv = ["-m", "tests.tenants.agents", world, "1", state, step, when]
    child = await asyncio.create_subprocess_exec(sys.executable, *argv, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"ready\n"
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


def _elements(one: Desk) -> set[tuple[str, ...]]:
    """Who may send what into the router."""
    listed = json.loads(
        command(one.node.router("blue"), "nft", "-j", "list", "set", "bridge", "orlop", "pods")
    )
    found = next(entry["set"] for entry in listed["nftables"] if "set" in entry)
    return {tuple(each["concat"]) for each in found.get("elem", ())}


def _recorded(one: Desk) -> set[tuple[str, ...]]:
    return {(lease.port, lease.mac, lease.address) for lease in one.records.leases}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("verb", "step"), [*(("ADD", step) for step in ADDING), *(("DEL", step) for step in REMOVING)]
)
async def test_an_agent_that_is_killed_at_a_step_leaves_nothing(
    bare_world: World, tmp_path: Path, verb: str, step: str, when: str
) -> None:
    state = tmp_path / "one"
    socket = state / "agent.sock"
    async with pod_namespace(tmp_path / "stays") as stays, pod_namespace(tmp_path / "pod") as place:
        async with _doomed(tmp_path, state, step, when) as child:
            made = await call(socket, "ADD", "stays", stays, "blue")
            if verb == "DEL":
                await call(socket, "ADD", "pod", place, "blue")
            (state / "armed").touch()
            with pytest.raises((PluginFailed, OSError)):
                await call(socket, verb, "pod", place, "blue")
            assert await asyncio.wait_for(child.wait(), LIMIT) < 0
            (state / "armed").unlink()
        async with desk(bare_world.nodes[1], state) as successor:
            assert _elements(successor) == _recorded(successor)
            await reached(successor.node.place, made["ips"][0]["address"].partition("/")[0])
            for pod, where in (("pod", place), ("pod", place), ("stays", stays)):
                await successor.call("DEL", pod, where)
                assert _elements(successor) == _recorded(successor)
            assert not left(successor)


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
async def test_a_caller_that_is_killed_leaves_nothing(one_desk: Desk, tmp_path: Path, verb: str) -> None:
    """The plug-in's program, at moments from before its call is said to after it is answered."""
    path = program.install(tmp_path / "bin", one_desk.socket)
    document = json.dumps({"cniVersion": "1.0.0", "name": "cluster", "type": program.NAME}).encode()
    async with pod_namespace(tmp_path / "pod") as place:
        for killed_after in range(0, 60, 6):
            if verb == "DEL":
                await one_desk.call("ADD", "a", place)
            variables = {
                "CNI_COMMAND": verb,
                "CNI_CONTAINERID": "a",
                "CNI_NETNS": os.fspath(place),
                "CNI_IFNAME": "eth0",
                "CNI_ARGS": "K8S_POD_NAMESPACE=blue;K8S_POD_NAME=a",
            }
            child = await asyncio.create_subprocess_exec(path, env=variables, stdin=subprocess.PIPE)
            assert child.stdin is not None
            child.stdin.write(document)
            child.stdin.close()
            await asyncio.sleep(killed_after / 1000)
            if child.returncode is None:
                child.kill()
            await child.wait()
            # What it had said by then is done; a call that comes later waits for that.
            await one_desk.call("DEL", "a", place)
            await one_desk.door.close()
            await one_desk.agent.collect(())
            assert not left(one_desk), f"killed after {killed_after} ms"
            one_desk.door = AgentDoor(one_desk.agent, one_desk.socket)
            await one_desk.door.open()
