"""``orlop tenants``, but for ``install``, which needs nothing but its own files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orlop.cli import output, session
from orlop.cli.problems import CliError

if TYPE_CHECKING:
    from orlop.tenants.api import Api

log = logging.getLogger(__name__)

EXTRA = "this needs packages that Orlop does without otherwise: pip install 'orlop[tenants]'"


@contextlib.asynccontextmanager
async def connected(kubeconfig: Path | None, context: str | None) -> AsyncIterator[Api]:
    """A connection to the API server. Raises CliError when the packages for it are not there."""
    try:
        from orlop.tenants.api import connect
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("lightkube", "httpx2", "dns"):
            raise
        raise CliError(EXTRA) from error
    async with connect(kubeconfig, context) as api:
        yield api


def _rows(found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for one in found:
        status = one.get("status", {})
        use = status.get("use", {})
        counted = [use.get(resource, "-") for resource in ("pods", "cpu", "memory", "storage")]
        places = ",".join(one["spec"]["namespaces"])
        rows.append(
            (
                one["metadata"]["name"],
                status.get("phase", "Pending"),
                str(status.get("members", 0)),
                places,
                *counted,
            )
        )
    return rows


async def list_command(kubeconfig: Path | None, context: str | None, *, as_json: bool) -> None:
    """``orlop tenants ls``."""
    async with connected(kubeconfig, context) as api:
        from orlop.tenants.api import TENANTS

        found = await api.list(TENANTS)
    if as_json:
        output.print_json(found)
        return
    header = ("NAME", "PHASE", "MEMBERS", "NAMESPACES", "PODS", "CPU", "MEMORY", "STORAGE")
    output.table(header, _rows(found))


async def show_command(kubeconfig: Path | None, context: str | None, name: str, *, as_json: bool) -> None:
    """``orlop tenants show``."""
    async with connected(kubeconfig, context) as api:
        from orlop.tenants.api import NETWORKS, TENANTS

        found = await api.find(TENANTS, name)
        network = await api.find(NETWORKS, name)
    if found is None:
        raise CliError(f"there is no tenant {name}: `orlop tenants ls` shows those there are")
    if as_json:
        output.print_json({"tenant": found, "network": network})
        return
    spec, status = found["spec"], found.get("status", {})
    members = [
        f"{one.get('user') or 'group ' + one['group']} ({one['role']})" for one in spec.get("members", [])
    ]
    rows = [
        ("tenant", name),
        ("phase", " ".join(filter(None, (status.get("phase", "Pending"), status.get("message", ""))))),
        ("members", ", ".join(members) or "none"),
        ("namespaces", ", ".join(spec["namespaces"])),
        ("runtime class", spec.get("runtimeClass", "")),
        *((f"use of {resource}", text) for resource, text in status.get("use", {}).items()),
    ]
    if network is not None:
        rows.append(("network", f"{network['spec']['cidr']}, VNI {network['spec']['vni']}"))
    rows += [
        (one["type"], "yes" if one["status"] == "True" else f"no: {one.get('message') or one.get('reason')}")
        for one in status.get("conditions", [])
    ]
    output.table(("WHAT", "IS"), rows)


async def kubeconfig_command(
    kubeconfig: Path | None, context: str | None, name: str, user: str, *, hours: int
) -> None:
    """``orlop tenants kubeconfig``."""
    async with connected(kubeconfig, context) as api:
        from orlop.tenants.kubeconfig import kubeconfig as made

        print(await made(api, name, user, hours * 3600), end="")


def operator_command(
    kubeconfig: Path | None, context: str | None, handlers: tuple[str, ...], *, metrics: str
) -> None:
    """``orlop tenants operator``: until SIGTERM or SIGINT."""
    _serve(lambda: _operate(kubeconfig, context, handlers, metrics))


class AgentPlacing(NamedTuple):
    """Where an agent writes its program, finds the node's root directory, and serves metrics."""

    programs: Path | None
    root: Path
    metrics: str


class AgentCluster(NamedTuple):
    """What an agent is told of its cluster: ranges, VXLAN's port, the addresses of the DNS, the domain."""

    closed: tuple[str, ...]
    port: int
    dns: tuple[str, ...]
    domain: str


def agent_command(
    kubeconfig: Path | None, context: str | None, node: str, cluster: AgentCluster, places: AgentPlacing
) -> None:
    """``orlop tenants agent``: until SIGTERM or SIGINT."""
    for address in cluster.dns:
        try:
            IPv4Address(address)
        except AddressValueError as error:
            raise CliError(f"--dns {address}: this is no IPv4 address") from error

    async def work() -> None:
        async with connected(kubeconfig, context) as api:
            from orlop.tenants.nodeagent import AgentPlaces, serve
            from orlop.tenants.nodeview import NodeView

            view = NodeView(api, node, closed=cluster.closed, port=cluster.port, dns=cluster.dns)
            await serve(view, AgentPlaces(**places._asdict()), cluster.domain)

    _serve(work)


def _serve(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # It would log each call.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        session.run_async(lambda: _until_ended(work))
    except* CliError as group:
        raise CliError("; ".join(map(str, group.exceptions))) from group


async def _until_ended(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True
        if task is not None:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    try:
        await work()
    except asyncio.CancelledError:
        if not ended:
            raise


async def _operate(
    kubeconfig: Path | None, context: str | None, handlers: tuple[str, ...], metrics: str
) -> None:
    # Of two pods on one node, and of two in one pod, each has another one.
    identity = f"{os.environ.get('HOSTNAME') or socket.gethostname()}_{uuid.uuid4()}"
    async with connected(kubeconfig, context) as api:
        from orlop.host.exporter import listen_at
        from orlop.tenants.lease import LeaseLost
        from orlop.tenants.operating import HANDLERS, Operator
        from orlop.tenants.operatormetrics import OperatorMetrics

        told, exporter = OperatorMetrics(api), listen_at(metrics)
        await exporter.start(told.into)
        try:
            while True:
                try:
                    await Operator(api, HANDLERS | frozenset(handlers), told).run(identity)
                except* LeaseLost:
                    # All its work has ended with it: it is one of those that wait, as at its start.
                    log.warning("the lease is not ours any more, which another operator may have")
        finally:
            await exporter.stop()
