"""What a cluster needs before it has tenants, for ``kubectl apply``: resources, policies, the operator."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import yaml

PARTS = ("crds", "policies", "agentpolicies", "defaults", "operator", "agent")
"""In the order in which they are applied: nothing is made before what guards it."""


def part(name: str) -> list[dict[str, Any]]:
    """The objects of one of :data:`PARTS`."""
    text = resources.files("orlop.tenants").joinpath("data", f"{name}.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


def guards() -> list[tuple[str, str]]:
    """Kind and name of each object of the policies, without which no tenant gets members."""
    return [(one["kind"], one["metadata"]["name"]) for one in part("policies")]


def manifests(
    image: str,
    *,
    handlers: tuple[str, ...] = (),
    closed: tuple[str, ...] = (),
    dns: tuple[str, ...] = (),
    domain: str = "",
    defaults: bool = True,
    metrics: int = 0,
) -> str:
    """All parts as one YAML stream.

    ``image`` is the operator's and the agents'; ``handlers`` are further handlers of RuntimeClasses that give
    a pod a virtual machine; ``closed`` are the ranges of the cluster's pods and Services, without which there
    is no DaemonSet of agents; ``dns`` and ``domain`` are the addresses of its DNS, if agents are to answer
    there, and its domain; without ``defaults`` nothing fills in a pod's RuntimeClass, as Kubernetes
    before 1.36 cannot. On the port ``metrics``, unless it is 0, each serves metrics to all who reach it.
    """
    objects = [one for name in PARTS if defaults or name != "defaults" for one in part(name)]
    options = {
        "Deployment": [word for handler in handlers for word in ("--handler", handler)],
        "DaemonSet": [
            *(word for one in closed for word in ("--closed", one)),
            *(word for one in dns for word in ("--dns", one)),
            *(("--domain", domain) if domain else ()),
        ],
    }
    if metrics:
        for words in options.values():
            words += ["--metrics", f"0.0.0.0:{metrics}"]
    if not closed:
        objects = [one for one in objects if one["kind"] != "DaemonSet"]
    for one in objects:
        if one["kind"] in options:
            container = one["spec"]["template"]["spec"]["containers"][0]
            container["image"] = image
            container["command"] += options[one["kind"]]
    # What stands twice in them is written twice, as nobody shares it any more.
    written: str = yaml.safe_dump_all(json.loads(json.dumps(objects)), sort_keys=False, width=110)
    return written
