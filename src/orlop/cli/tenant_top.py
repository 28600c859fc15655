"""``orlop tenants top``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orlop.cli import output, units
from orlop.cli.problems import CliError
from orlop.cli.tenants import connected

if TYPE_CHECKING:
    from orlop.tenants.use import ClusterUse, TenantUse

_RESOURCES: Final = ("pods", "cpu", "memory", "storage", "floatingIPs")


async def command(
    kubeconfig: Path | None, context: str | None, tenant: str, *, by: str, port: int, as_json: bool
) -> None:
    """Show what tenants use, or the pods of one."""
    async with connected(kubeconfig, context) as api:
        from orlop.tenants.use import use

        found = await use(api, port)
    if tenant:
        found.tenants = [one for one in found.tenants if one.name == tenant]
        if not found.tenants:
            raise CliError(f"there is no tenant {tenant}: `orlop tenants ls` shows those there are")
    found.tenants = _sorted(found.tenants, by)
    for one in found.tenants:
        one.pods = _sorted(one.pods, by)
    if as_json:
        output.print_json(dataclasses.asdict(found))
    else:
        _show(found, pods=bool(tenant))


def _sorted(rows: list[Any], by: str) -> list[Any]:
    """By name, or the largest first; pods have no traffic of their own, and stay sorted by name."""
    named = sorted(rows, key=lambda one: (getattr(one, "namespace", ""), one.name))
    if by == "name":
        return named
    key: Callable[[Any], float] = lambda one: getattr(one, by, None) or 0  # noqa: E731
    return sorted(named, key=key, reverse=True)


def _show(found: ClusterUse, *, pods: bool) -> None:
    head = ("TENANT", "PHASE", *(one.upper() for one in _RESOURCES), "CPU NOW", "MEMORY NOW")
    output.table((*head, "RECEIVED", "SENT", "DROPPED"), [_row(one) for one in found.tenants])
    if pods:
        print()
        rows = [
            (f"{pod.namespace}/{pod.name}", f"{pod.cpu:.3f}", units.show_size(pod.memory))
            for one in found.tenants
            for pod in one.pods
        ]
        output.table(("POD", "CPU NOW", "MEMORY NOW"), rows)
    for one in found.missing:
        output.errors().print(output.readable(f"missing: {one}"), markup=False)


def _row(one: TenantUse) -> tuple[str, ...]:
    moved = ["-" if amount is None else units.show_size(amount) for amount in (one.received, one.sent)]
    dropped = "-" if one.dropped is None else str(one.dropped)
    quota = [one.quota.get(resource, "-") for resource in _RESOURCES]
    return (one.name, one.phase, *quota, f"{one.cpu:.3f}", units.show_size(one.memory), *moved, dropped)
