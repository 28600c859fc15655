"""What a kubelet does with pods of tenants, which it knows by their aliases."""

from __future__ import annotations

import pytest

from tests.cluster import layout
from tests.cluster.room import eventually
from tests.tenants_cluster.conftest import BOTH
from tests.tenants_cluster.room import PORT, TenantCluster, server

FORWARD = """
$KUBECTL port-forward --namespace="$1" "pod/$2" 18080:8080 >/dev/null &
trap 'kill $!' EXIT
curl -sS --retry 30 --retry-delay 1 --retry-connrefused http://127.0.0.1:18080/hostname
"""


def test_probes_of_all_kinds_pass_and_fail(here: TenantCluster) -> None:
    often = {"periodSeconds": 1, "timeoutSeconds": 30}
    port = {"tcpSocket": {"port": PORT}, **often}
    file = {"exec": {"command": ["test", "!", "-e", "/tmp/ill"]}, **often, "failureThreshold": 1}
    here.run_pods(server("probed", "blue", here.nodes[0], startupProbe=port, readinessProbe=file))
    here.inside("blue", "probed", "touch", "/tmp/ill")
    here.cluster.wait("pod/probed", "condition=Ready=false", "--namespace=blue")
    here.cluster.kubectl("delete", "pod", "probed", "--namespace=blue")


@pytest.mark.parametrize("name", BOTH)
def test_logs_exec_and_port_forward(name: str, here: TenantCluster) -> None:
    for number in (1, 2):
        pod = f"{name}{number}"
        assert here.cluster.kubectl("logs", f"--namespace={name}", pod).out
        assert here.inside(name, pod, "hostname").out.strip() == pod
        assert here.shell(FORWARD, name, pod).out == pod


def test_the_resolver_is_the_kubelets(here: TenantCluster) -> None:
    said = here.inside("blue", "blue1", "cat", "/etc/resolv.conf").out
    assert f"nameserver {layout.DNS_SERVICE}" in said
    assert f"blue.svc.{layout.DOMAIN}" in said


@pytest.mark.parametrize("program", ["agent", "orlopd", "kubelet"])
def test_pods_outlive_a_killed(program: str, here: TenantCluster) -> None:
    node = here.nodes[0]
    before = {name: here.pod(name, f"{name}1")["status"] for name in BOTH}
    node.kill(program)
    here.serving(node)
    for name in BOTH:
        done = here.fetch(name, f"{name}2", f"http://{here.address(name, f'{name}1')}:{PORT}/hostname")
        assert done.out == f"{name}1", done
    # Whoever was killed has been at work since.
    here.run_pods(server(f"after-{program}", "blue", node))
    here.cluster.kubectl("delete", "pod", f"after-{program}", "--namespace=blue")
    for name in BOTH:
        after = eventually(
            lambda name=name: here.pod(name, f"{name}1")["status"],  # type: ignore[misc]
            lambda status: status["containerStatuses"][0]["ready"],
        )
        assert after["podIP"] == before[name]["podIP"]
        assert after["containerStatuses"][0]["restartCount"] == 0
