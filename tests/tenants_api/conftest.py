"""A control plane with Orlop's tenants installed, and their operator, as the service account that it has."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import layout
from tests.tenants_api.plane import Child, Plane, eventually, plane

RUNTIMES = Path(__file__).parents[2] / "packaging/kubernetes/runtimeclasses.yaml"


@pytest.fixture(autouse=True)
def no_child_survives() -> None:
    """Operators do, on purpose: they end with the control plane."""


def tenant(name: str, namespaces: Sequence[str] = (), **spec: Any) -> dict[str, Any]:
    """A Tenant, with a namespace of its name unless told otherwise."""
    return {
        "apiVersion": "orlop.dev/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": name},
        "spec": {"namespaces": list(namespaces or [name]), **spec},
    }


def pod(name: str = "one", *, container: dict[str, Any] | None = None, **spec: Any) -> str:
    """A pod, as JSON."""
    containers = [{"name": "main", "image": "busybox", **(container or {})}]
    about = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}
    return json.dumps({**about, "spec": {"containers": containers, **spec}})


class Ship:
    """The control plane and its operators."""

    def __init__(self, one: Plane, operator: Plane) -> None:
        self.plane, self.operator = one, operator
        self.operators: list[Child] = []

    def start(self) -> Child:
        """Start one more operator."""
        argv = [sys.executable, "-m", "orlop.cli.main", "tenants", "operator"]
        env = {"KUBECONFIG": os.fspath(self.operator.kubeconfig)}
        log = layout.logs(self.plane.directory) / f"operator{len(self.operators)}.log"
        self.operators.append(Child(argv, log, env))
        return self.operators[-1]

    def running(self) -> list[Child]:
        """The operators that have not ended."""
        return [one for one in self.operators if one.process.poll() is None]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End all operators, and let the next one begin at once."""
        for child in self.running():
            child.end(number)
        self.plane.kubectl("delete", "lease", "orlop-tenants", "-n", "orlop-system", "--ignore-not-found")

    def phase(self, name: str) -> str:
        """A tenant's phase once the operator has seen its last change; "" when there is none."""
        found = self.plane.json("get", "tenant", name) or {}
        status = found.get("status", {})
        seen = status.get("observedGeneration") == found.get("metadata", {}).get("generation")
        return str(status.get("phase", "")) if seen else ""

    def settled(self, name: str, phase: str = "Active") -> Any:
        """Wait for a tenant's phase; the Tenant."""
        eventually(lambda: (self.phase(name), self.said()), lambda found: found[0] == phase)
        return self.plane.json("get", "tenant", name)

    def add(self, *tenants: dict[str, Any], phase: str = "Active") -> None:
        """Apply tenants and wait until all of them are settled."""
        self.plane.apply(*tenants)
        for one in tenants:
            self.settled(one["metadata"]["name"], phase)

    def change(self, name: str, **spec: Any) -> None:
        """Change some fields of a tenant's spec and wait until that is so."""
        self.plane.kubectl("patch", "tenant", name, "--type=merge", "-p", json.dumps({"spec": spec}))
        self.settled(name)

    def end(self, *names: str) -> None:
        """Delete tenants and wait until they are gone."""
        for name in names:
            self.plane.kubectl("delete", "tenant", name, "--ignore-not-found", "--wait=false")
        for name in names:
            self.gone("tenant", name)

    def gone(self, kind: str, name: str, *arguments: str) -> None:
        """Wait until an object is not there."""
        eventually(lambda: self.plane.json("get", kind, name, *arguments), lambda found: found is None)

    def member(self, name: str, user: str) -> Plane:
        """The cluster as a member sees it."""
        made = self.plane.orlop("kubeconfig", name, user)
        assert made.returncode == 0, made.stderr
        return self.plane.seen_by(made.stdout)

    def said(self) -> str:
        """The last lines of each operator."""
        return "\n".join(one.said()[-1500:] for one in self.running())


def works(ship: Ship, name: str) -> None:
    """A tenant that nobody has seen becomes active and goes again."""
    ship.add(tenant(name))
    ship.end(name)


@pytest.fixture(scope="session")
def installed() -> Iterator[Ship]:
    """Installed, and no operator is promised to run."""
    with plane() as one:
        printed = one.orlop("install")
        assert printed.returncode == 0, printed.stderr
        one.apply(printed.stdout, RUNTIMES.read_text())
        ship = Ship(one, one.account("orlop-system", "orlop-tenants"))
        try:
            yield ship
        finally:
            for child in ship.running():
                child.end(signal.SIGTERM)


@pytest.fixture
def ship(installed: Ship) -> Ship:
    """One operator runs."""
    if not installed.running():
        installed.start()
    return installed
