"""The tenants' dashboard and alert rules: read by Prometheus' own parsers, and all they name is served."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.registry import CollectorRegistry

from orlop.cri.translate import metrics as of_pods
from orlop.tenantnet.guards import GUARDS
from orlop.tenants.agentmetrics import AgentMetrics
from orlop.tenants.operatormetrics import OperatorMetrics
from tests.conftest import needs_root
from tests.monitoring.test_rules import MONITORING, OF_PROMETHEUS, SCRAPED, expressions, parse
from tests.tenants.agents import call, desk, pod_namespace
from tests.tenants.world import World

pytestmark = needs_root

RULES = MONITORING / "tenants-alerts.yaml"
VARIABLES = {"$__rate_interval": "5m", "$tenant": ".*"}
TENANT = {
    "metadata": {"name": "blue"},
    "status": {"phase": "Active", "namespaces": ["blue"], "use": {"pods": "1/2"}},
}


class Listed:
    """An API server with one tenant: the operator's figures of it are made of nothing else."""

    async def list(self, kind: Any) -> list[dict[str, Any]]:
        return [TENANT]


@pytest.fixture(scope="module")
def parsed() -> Any:
    return parse(RULES, expressions("tenants-dashboard.json", VARIABLES))


def _samples(registry: CollectorRegistry) -> Iterable[tuple[str, set[str]]]:
    for family in registry.collect():
        for sample in family.samples:
            yield sample.name, set(sample.labels)


async def _served(directory: Path) -> dict[str, set[str]]:
    """Each sample of an agent with a pod, and of an operator that works, with its labels."""
    registry, world = CollectorRegistry(), World(directory)
    try:
        await world.build_nodes()
        node = world.nodes[1]
        async with (
            desk(node, directory / "agent") as one,
            pod_namespace(directory / "pod") as place,
        ):
            await call(one.socket, "ADD", "pod", place, "blue")
            agent = AgentMetrics(one.records, node.routers, node.place)
            operator = OperatorMetrics(Listed())  # type: ignore[arg-type]
            operator.leads = True
            for metrics in (agent, operator):
                metrics.into(registry)
            for calls, name in ((agent.calls, "ADD"), (operator.rounds, "whole")):
                with calls.call(name):
                    pass
            found: dict[str, set[str]] = {}
            for name, labels in await asyncio.to_thread(lambda: list(_samples(registry))):
                found.setdefault(name, set()).update(labels)
            return found
    finally:
        await world.clear()


async def test_every_metric_and_label_is_served(parsed: Any, tmp_path: Path) -> None:
    served = await _served(tmp_path)
    served |= {one.name: set(one.label_keys) for one in of_pods.descriptors()}
    for selector in parsed["selectors"]:
        (name,) = [one["value"] for one in selector if one["label"] == "__name__"]
        if name in OF_PROMETHEUS:
            continue
        assert name in served
        labels = {one["label"] for one in selector} - {"__name__"} - SCRAPED
        assert labels <= served[name], f"{name} has the labels {served[name]}"


def test_prometheus_understands_every_rule_and_panel(parsed: Any) -> None:
    assert parsed["errors"] == []
    assert len(parsed["selectors"]) > 20


def test_the_guards_that_are_named_exist(parsed: Any) -> None:
    named = {
        guard
        for selector in parsed["selectors"]
        for one in selector
        if one["label"] == "guard"
        for guard in one["value"].split("|")
    }
    assert named
    for guard in named:
        assert any(known.startswith(guard.removesuffix(".*")) for known in GUARDS)


def test_every_alert_tells_what_to_do() -> None:
    for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]:
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
    jobs = yaml.safe_load((MONITORING / "tenants-scrape.yaml").read_text())["scrape_configs"]
    assert [one["job_name"] for one in jobs] == ["orlop-tenants", "orlop-tenants-agent"]


def test_every_metric_is_in_the_docs(parsed: Any) -> None:
    text = (MONITORING.parents[1] / "docs/tenants.md").read_text()
    for selector in parsed["selectors"]:
        (name,) = [one["value"] for one in selector if one["label"] == "__name__"]
        if name.startswith("orlop_"):
            assert f"`{name.removesuffix('_bucket')}`" in text
