"""Services of a tenant, asked for in virtual machines on both nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import layout
from tests.cluster.room import eventually
from tests.tenants_cluster.conftest import BOTH
from tests.tenants_cluster.room import PORT, TenantCluster, service


@pytest.fixture(scope="module")
def served(here: TenantCluster) -> Iterator[TenantCluster]:
    """A Service of the same name in each tenant, for its pods on both nodes."""
    here.cluster.apply(*(service("web", name) for name in BOTH))
    yield here
    for name in BOTH:
        here.cluster.kubectl("delete", "service", "web", f"--namespace={name}")


def _all_answer(here: TenantCluster, namespace: str, pod: str, host: str) -> None:
    """Each server of the tenant answers the pod there, sooner or later."""
    missing = {f"{namespace}1", f"{namespace}2"}

    def left() -> set[str]:
        """Those that have not answered yet: a call goes to one of them by chance."""
        missing.discard(here.fetch(namespace, pod, f"http://{host}:{PORT}/hostname").out)
        return missing

    eventually(left, lambda found: not found)


@pytest.mark.parametrize("name", BOTH)
def test_a_service_leads_to_pods_on_both_nodes_from_both(name: str, served: TenantCluster) -> None:
    for number in (1, 2):
        _all_answer(served, name, f"{name}{number}", served.cluster_ip(name, "web"))


def test_a_service_of_another_tenant_answers_nobody(served: TenantCluster) -> None:
    url = f"http://{served.cluster_ip('green', 'web')}:{PORT}/hostname"
    for pod in ("blue1", "blue2"):
        assert served.answered("blue", pod, url) == []


@pytest.mark.parametrize("host", ["web", "web.blue", f"web.blue.svc.{layout.DOMAIN}"])
def test_a_service_is_found_by_its_name_on_both_nodes(host: str, served: TenantCluster) -> None:
    for pod in ("blue1", "blue2"):
        _all_answer(served, "blue", pod, host)


def test_names_are_a_tenants_own(served: TenantCluster) -> None:
    _all_answer(served, "green", "green1", "web")
    for host in ("web.green", f"web.green.svc.{layout.DOMAIN}", f"kubernetes.default.svc.{layout.DOMAIN}"):
        done = served.fetch("blue", "blue1", f"http://{host}:{PORT}/hostname")
        assert done.code != 0 and "resolve" in done.err, f"{host}: {done}"
