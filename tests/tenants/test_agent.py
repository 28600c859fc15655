"""The CNI verbs, as a runtime calls them: what they make and leave, also when their agent is killed."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from orlop.host import netns
from orlop.net.plugins import PluginFailed
from orlop.tenantnet import program
from orlop.tenantnet.door import AgentDoor
from orlop.tenantnet.model import PORT_PREFIX, Frontend
from tests.tenants.agents import Desk, call, desk, pod_namespace
from tests.tenants.world import LIMIT, PORT, Guards, TestNode, World, command

TRY_AGAIN = 11


@pytest.fixture
async def bare_world(tmp_path: Path) -> AsyncIterator[World]:
    """The nodes, without routers."""
    one = World(tmp_path)
    try:
        await one.build_nodes()
        yield one
    finally:
        await one.clear()


@pytest.fixture
async def one_desk(bare_world: World, tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(bare_world.nodes[1], tmp_path / "one") as one:
        yield one


async def test_a_pod_that_waits_sets_nothing_back(one_desk: Desk, tmp_path: Path) -> None:
    """What its tenant's network has become meanwhile is what its router knows."""
    agent, cluster, node = one_desk.agent, one_desk.cluster, one_desk.node
    former = cluster.networks["blue"]
    later = replace(former, services=(Frontend(address="10.96.0.9", protocol="tcp", port=80),))
    async with pod_namespace(tmp_path / "a") as a, pod_namespace(tmp_path / "b") as b:
        await one_desk.call("ADD", "a", a)
        cluster.asked.clear()
        async with asyncio.TaskGroup() as group, agent._turns.of("blue"):
            group.create_task(agent.renew(node.ground, [later]))
            for _ in range(10):
                await asyncio.sleep(0)  # it waits for its turn, which it has before the pod
            group.create_task(one_desk.call("ADD", "b", b))
            async with asyncio.timeout(LIMIT):
                await cluster.asked.wait()
            cluster.networks["blue"] = later
        known = command(node.router("blue"), "nft", "list", "map", "ip", "orlop", "services")
        assert "10.96.0.9" in known
        for name, place in (("a", a), ("b", b)):
            await one_desk.call("DEL", name, place)


def _ports(node: TestNode, tenant: str) -> list[str]:
    links = json.loads(command(node.router(tenant), "ip", "-j", "link"))
    return [link["ifname"] for link in links if link["ifname"].startswith(PORT_PREFIX)]


def left(desk: Desk) -> list[str]:
    """What is left of pods: records, ports, routes to aliases, elements of rules."""
    node = desk.node
    found = [path.name for path in (desk.state / "leases").iterdir()]
    routes = command(node.place, "ip", "route", "show", "proto", "111").splitlines()
    found += [one for one in routes if not one.startswith("240.")]  # the routers themselves
    for network in desk.records.networks:
        found += _ports(node, network.name)
        rules = command(node.router(network.name), "nft", "list", "ruleset")
        found += [line for line in rules.splitlines() if PORT_PREFIX in line]
        permanent = ["ip", "neigh", "show", "dev", "pods", "nud", "permanent"]
        found += command(node.router(network.name), *permanent).splitlines()
    return found


async def reached(place: Path, address: str) -> None:
    """The pod itself refuses: nothing in it listens."""

    def call() -> None:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, PORT), timeout=LIMIT)

    await netns.within(place, call)


async def test_a_pod_comes_and_goes(one_desk: Desk, tmp_path: Path) -> None:
    async with pod_namespace(tmp_path / "pod") as place:
        made = await one_desk.call("ADD", "a", place)
        (address,) = made["ips"]
        alias = address["address"].partition("/")[0]
        inside = made["interfaces"][address["interface"]]
        assert (inside["name"], inside["sandbox"]) == ("eth0", str(place))
        assert "10.0.1.2/32" in command(place, "ip", "address", "show", "eth0")
        await reached(one_desk.node.place, alias)
        await one_desk.call("CHECK", "a", place)
        assert [lease.pod for lease in one_desk.cluster.told_of] == ["a"]
        for _ in range(2):
            await one_desk.call("DEL", "a", place)
            assert not left(one_desk)


async def test_pods_of_two_nodes_meet(bare_world: World, one_desk: Desk, tmp_path: Path) -> None:
    async with (
        desk(bare_world.nodes[2], tmp_path / "two") as other,
        pod_namespace(tmp_path / "a") as a,
        pod_namespace(tmp_path / "b") as b,
    ):
        await one_desk.call("ADD", "a", a)
        await other.call("ADD", "b", b)
        await reached(a, "10.0.2.2")


async def test_what_is_gone_before_del_is_taken_for_removed(one_desk: Desk, tmp_path: Path) -> None:
    async with pod_namespace(tmp_path / "pod") as place:
        await one_desk.call("ADD", "a", place)
    await one_desk.call("DEL", "a", "")
    assert not left(one_desk)


async def test_add_again_replaces_what_is_there(one_desk: Desk, tmp_path: Path) -> None:
    """A kubelet tries again when it was not told that it went well."""
    async with pod_namespace(tmp_path / "pod") as place:
        await one_desk.call("ADD", "a", place)
        await one_desk.call("ADD", "a", place)
        assert len(one_desk.records.leases) == len(_ports(one_desk.node, "blue")) == 1
        await one_desk.call("DEL", "a", place)
        assert not left(one_desk)


async def test_many_at_once_have_addresses_of_their_own(one_desk: Desk, tmp_path: Path) -> None:
    names = [f"pod{number}" for number in range(12)]
    for name in names:
        await netns.create(tmp_path / name)
    try:
        adds = (
            one_desk.call("ADD", name, tmp_path / name, ("blue", "green")[number % 2])
            for number, name in enumerate(names)
        )
        made = await asyncio.gather(*adds)
        assert len({one["ips"][0]["address"] for one in made}) == len(names)
        pairs = {(lease.tenant, lease.address) for lease in one_desk.records.leases}
        assert len(pairs) == len(names)
        await asyncio.gather(*(one_desk.call("DEL", name, tmp_path / name) for name in names))
        assert not left(one_desk)
    finally:
        for name in names:
            await netns.delete(tmp_path / name)


async def test_a_failed_add_leaves_nothing(one_desk: Desk, tmp_path: Path) -> None:
    async with pod_namespace(tmp_path / "pod") as place:
        command(place, "ip", "link", "add", "eth0", "type", "bridge")
        with pytest.raises(PluginFailed, match="exists"):
            await one_desk.call("ADD", "a", place)
        assert not left(one_desk)


async def test_del_that_overtakes_its_add_leaves_nothing(one_desk: Desk, tmp_path: Path) -> None:
    async with pod_namespace(tmp_path / "pod") as place:
        adding = asyncio.create_task(one_desk.call("ADD", "a", place))
        await asyncio.sleep(0)
        adding.cancel()
        await asyncio.wait([adding])
        await one_desk.call("DEL", "a", place)
        # What was said before may still be on its way in; it is finished then, and collected.
        await one_desk.door.close()
        await one_desk.agent.collect(())
        assert not left(one_desk)


async def test_a_namespace_that_is_not_known_gets_no_other_network(one_desk: Desk, tmp_path: Path) -> None:
    async with pod_namespace(tmp_path / "pod") as place:
        with pytest.raises(PluginFailed, match="not known yet") as caught:
            await one_desk.call("ADD", "a", place, "red")
        assert caught.value.cni_code == TRY_AGAIN


async def test_a_call_that_breaks_off_does_nothing(one_desk: Desk, tmp_path: Path) -> None:
    """Half of a namespace's name may be the name of another tenant's."""
    async with pod_namespace(tmp_path / "pod") as place:
        said = f"CNI_COMMAND=ADD\0CNI_CONTAINERID=a\0CNI_NETNS={place}\0CNI_IFNAME=eth0\0"
        said += "CNI_ARGS=K8S_POD_NAMESPACE=blue"
        for part in (said, f"{said}\0", f"{said}\0\0", f'{said}\0\0{{"name": "clu'):
            reader, writer = await asyncio.open_unix_connection(one_desk.socket)
            writer.write(part.encode())
            writer.write_eof()
            assert (await reader.read()).startswith(b"1\n")
            writer.close()
        assert not one_desk.records.leases


async def test_a_pod_of_no_tenant_is_the_delegates(one_desk: Desk, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    plugin = tmp_path / "other"
    plugin.write_text(
        f'#!/bin/sh\n{{ echo "$CNI_COMMAND $CNI_CONTAINERID"; cat; echo; }} >>{seen}\n'
        "echo '{\"ips\": []}'\n"
    )
    plugin.chmod(0o755)
    about = {"delegate": {"type": "other", "mtu": 1400}, "bin_dirs": (str(tmp_path),)}
    assert await one_desk.call("ADD", "a", "/proc/self/ns/net", "plain", **about) == {"ips": []}
    await one_desk.call("DEL", "a", "/proc/self/ns/net", "plain", **about)
    calls = seen.read_text().splitlines()
    assert calls[0::2] == ["ADD a", "DEL a"]
    assert json.loads(calls[1]) == {"type": "other", "mtu": 1400, "name": "cluster", "cniVersion": "1.0.0"}
    with pytest.raises(PluginFailed, match="no delegate"):
        await one_desk.call("ADD", "a", "/proc/self/ns/net", "plain")


async def test_an_agent_finds_what_the_node_calls_its_root_where_it_is_told(
    one_desk: Desk, tmp_path: Path
) -> None:
    path, plugin = tmp_path / "other.sock", tmp_path / "other"
    plugin.write_text('#!/bin/sh\necho "{\\"ips\\": [], \\"by\\": \\"$CNI_NETNS\\"}"\n')
    plugin.chmod(0o755)
    door = AgentDoor(one_desk.agent, path, Path("/proc/self/root"))
    await door.open()
    try:
        async with pod_namespace(tmp_path / "pod") as place:
            about = {"delegate": {"type": "other"}, "bin_dirs": (str(tmp_path),)}
            said = await call(path, "ADD", "b", place, "plain", **about)
            assert said["by"] == str(place)
            await call(path, "ADD", "a", place, "blue")
            (lease,) = one_desk.records.leases
            assert lease.netns == f"/proc/self/root{place}"
            await call(path, "CHECK", "a", place, "blue")
            await call(path, "DEL", "a", place, "blue")
            with pytest.raises(PluginFailed, match="no absolute path"):
                await call(path, "ADD", "a", "somewhere", "blue")
    finally:
        await door.close()


async def test_root_alone_may_ask(one_desk: Desk) -> None:
    assert one_desk.socket.stat().st_mode & 0o777 == 0o600


async def test_version_status_and_collection(one_desk: Desk, tmp_path: Path) -> None:
    assert "1.1.0" in (await one_desk.call("VERSION"))["supportedVersions"]
    await one_desk.call("STATUS")
    async with pod_namespace(tmp_path / "a") as a, pod_namespace(tmp_path / "b") as b:
        await one_desk.call("ADD", "a", a)
        await one_desk.call("ADD", "b", b)
        kept = [{"containerID": "b", "ifname": "eth0"}]
        await one_desk.call("GC", **{"cni.dev/valid-attachments": kept})
        assert [lease.container for lease in one_desk.records.leases] == ["b"]
        assert len(_ports(one_desk.node, "blue")) == 1
        command(b, "ip", "link", "delete", "eth0")
        with pytest.raises(PluginFailed, match="has no interface"):
            await one_desk.call("CHECK", "b", b)


async def test_the_program_for_other_runtimes(one_desk: Desk, tmp_path: Path) -> None:
    path = program.install(tmp_path / "bin", one_desk.socket)
    async with pod_namespace(tmp_path / "pod") as place:
        variables = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "a",
            "CNI_NETNS": str(place),
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=blue;K8S_POD_NAME=a",
        }
        document = json.dumps({"cniVersion": "0.4.0", "name": "cluster", "type": program.NAME})

        async def run(**changed: str) -> tuple[int | None, dict[str, object]]:
            pipe = subprocess.PIPE
            child = await asyncio.create_subprocess_exec(
                path, env={**variables, **changed}, stdin=pipe, stdout=pipe
            )
            said, _ = await child.communicate(document.encode())
            return child.returncode, json.loads(said or b"{}")

        code, made = await run()
        assert (code, made["cniVersion"]) == (0, "0.4.0")
        assert len(one_desk.records.leases) == 1
        assert await run(CNI_COMMAND="DEL") == (0, {})
        await one_desk.door.close()
        code, said = await run()
        assert (code, said["code"]) == (1, TRY_AGAIN)


async def test_a_router_follows_the_cluster_and_goes_with_its_last_pod(
    one_desk: Desk, tmp_path: Path
) -> None:
    node, blue = one_desk.node, one_desk.node.networks["blue"]
    async with pod_namespace(tmp_path / "pod") as place:
        await one_desk.call("ADD", "a", place)
        changed = type(blue)(
            **{**{name: getattr(blue, name) for name in blue.__struct_fields__}, "peers": ()}
        )
        await one_desk.agent.renew(node.ground, [changed])
        assert "10.0.2.0/24" not in command(node.router("blue"), "ip", "route")
        await one_desk.agent.renew(node.ground, [])
        assert node.router("blue").exists()
        await one_desk.call("DEL", "a", place)
        await one_desk.agent.renew(node.ground, [])
    assert not node.router("blue").exists()
    assert blue.uplink not in command(node.place, "ip", "link")
    assert not list((one_desk.state / "routers").iterdir())


async def test_an_agent_that_starts_finds_what_is_there(one_desk: Desk, tmp_path: Path) -> None:
    async with pod_namespace(tmp_path / "gone") as gone, pod_namespace(tmp_path / "pod") as place:
        await one_desk.call("ADD", "gone", gone)
        made = await one_desk.call("ADD", "a", place)
        await one_desk.door.close()
        await netns.delete(gone)
        command(one_desk.node.router("blue"), "nft", "flush", "ruleset")
        async with desk(one_desk.node, tmp_path / "one") as successor:
            assert [lease.container for lease in successor.records.leases] == ["a"]
            assert "own-address" in Guards(one_desk.node.router("blue")).names()
            await reached(one_desk.node.place, made["ips"][0]["address"].partition("/")[0])
            await successor.call("DEL", "a", place)
            assert not left(successor)


async def test_nothing_stays_of_pods_whose_agent_was_killed(bare_world: World, tmp_path: Path) -> None:
    """Wherever it was: what a successor finds is finished or taken back, and DEL takes the rest."""
    state = tmp_path / "one"
    names = [f"pod{number}" for number in range(4)]
    for name in names:
        await netns.create(tmp_path / name)
    try:
        for killed_after in range(0, 60, 6):
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.tenants.agents", tmp_path, "1", state, stdout=subprocess.PIPE
            )
            assert child.stdout is not None
            assert await child.stdout.readline() == b"ready\n"
            adds = [call(state / "agent.sock", "ADD", name, tmp_path / name, "blue") for name in names]
            waiting = asyncio.gather(*adds, return_exceptions=True)
            await asyncio.sleep(killed_after / 1000)
            child.kill()
            await child.wait()
            await waiting
            async with desk(bare_world.nodes[1], state) as successor:
                for name in names:
                    await successor.call("DEL", name, tmp_path / name)
                assert not left(successor), f"killed after {killed_after} ms"
    finally:
        for name in names:
            await netns.delete(tmp_path / name)
