"""The dashboard and the alert rules: read by Prometheus' own parsers, and all they name is there.

``make monitoring``: Go builds the parsers (minutes, once). What they name is compared with what a daemon
serves after it has run a pod of each handler.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conformance import tools
from tests.node import BUSYBOX, node
from tests.patience import PATIENCE

HERE = Path(__file__).parent
MONITORING = HERE.parents[1] / "packaging" / "monitoring"
OF_PROMETHEUS = {"up"}
"""What Prometheus itself adds, and the labels that it puts on what it scrapes."""
SCRAPED = {"job", "instance"}
SAMPLE = re.compile(r"^([a-z_:]+)(?:\{(.*)\})? ")
LABEL = re.compile(r'(\w+)="')
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*"}


def checker() -> Path:
    """Prometheus' parsers as a program, built if it is not in the cache."""
    sources = sorted((HERE / "checker").iterdir())
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]

    def make(scratch: Path) -> Path:
        tools.say("building Prometheus' parsers (minutes, once)")
        environment = {"GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
        command = [tools.find_go(), "build", "-trimpath", "-o", scratch / "rules", "."]
        tools.run(command, cwd=HERE / "checker", env=environment)
        return scratch / "rules"

    return tools.cached(tools.cache_dir() / "compiled" / f"rules-{key}", make)


def expressions(dashboard: str, variables: Mapping[str, str]) -> list[str]:
    """Of every panel of a dashboard, with Grafana's variables filled in."""
    found = []
    for panel in json.loads((MONITORING / dashboard).read_text())["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in variables.items():
                text = text.replace(name, value)
            assert "$" not in text
            found.append(text)
    return found


def parse(rules: Path, asked: list[str]) -> Any:
    """What Prometheus' parsers say of rules and of expressions."""
    done = subprocess.run(
        [checker(), rules],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def parsed() -> Any:
    return parse(MONITORING / "alerts.yaml", expressions("dashboard.json", VARIABLES))


@pytest.fixture(scope="module")
def served(registry: str) -> dict[str, set[str]]:
    """Each sample that a daemon serves, with its labels."""
    port = tools.free_port()
    with node(registry, extra={"metrics": {"port": port}}) as one:
        one.wait_ready()
        for handler in ("vm", "process"):
            one.run(BUSYBOX, "sleep", "600", handler=handler)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60 * PATIENCE)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if sample := SAMPLE.match(line):
            found.setdefault(sample[1], set()).update(LABEL.findall(sample[2] or ""))
    return found


def test_prometheus_understands_every_rule_and_panel(parsed: Any) -> None:
    assert parsed["errors"] == []
    assert len(parsed["selectors"]) > 20


def test_a_wrong_expression_is_found() -> None:
    command = [checker(), MONITORING / "alerts.yaml"]
    done = subprocess.run(command, input='["rate(x)"]', capture_output=True, text=True, check=True)
    (error,) = json.loads(done.stdout)["errors"]
    assert "expected type range vector" in error


def test_every_metric_and_label_is_served(parsed: Any, served: dict[str, set[str]]) -> None:
    for selector in parsed["selectors"]:
        (name,) = [one["value"] for one in selector if one["label"] == "__name__"]
        if name in OF_PROMETHEUS:
            continue
        assert name in served
        labels = {one["label"] for one in selector} - {"__name__"} - SCRAPED
        assert labels <= served[name], f"{name} has the labels {served[name]}"


def test_the_calls_that_are_named_exist(parsed: Any) -> None:
    from orlop.cri.api import runtime_v1_pb2 as pb

    calls = {call.name for service in pb.DESCRIPTOR.services_by_name.values() for call in service.methods}
    for selector in parsed["selectors"]:
        for one in selector:
            if one["label"] == "rpc" and one["type"] != "!=":
                assert set(one["value"].split("|")) <= calls


def test_every_alert_tells_what_to_do() -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    for rule in rules:
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
    (job,) = yaml.safe_load((MONITORING / "scrape.yaml").read_text())["scrape_configs"]
    assert job["job_name"] == "orlop"
