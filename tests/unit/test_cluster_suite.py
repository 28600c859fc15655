"""What the harness of the cluster chooses, and what a cluster's parts agree on."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster import __main__ as harness
from tests.cluster import certificates, keeper, layout
from tests.cluster.layout import Place
from tests.cluster.room import MANIFESTS
from tests.csi_life import __main__ as storage
from tests.csi_life import sidecars
from tests.node_e2e import judgement


def test_conformance_is_what_runs_unless_told() -> None:
    assert harness.focus(harness.arguments([])) == harness.CONFORMANCE
    assert harness.focus(harness.arguments(["--focus", "Services"])) == "Services"


def test_the_short_list_is_one_expression_of_its_lines() -> None:
    expression = harness.focus(harness.arguments(["--short"]))
    assert "#" not in expression
    assert "||" not in expression
    name = "[sig-network] DNS should provide DNS for services [Conformance] [sig-network, Conformance]"
    assert re.search(expression, name)
    assert not re.search(expression, "[sig-storage] EmptyDir volumes should support (root,0644,tmpfs)")


def test_the_list_of_exceptions_can_be_read() -> None:
    for excuse in judgement.exceptions(harness.EXCEPTIONS):
        assert excuse.runtimes <= {*harness.HANDLERS}


def test_the_storage_suite_is_told_of_a_driver_and_of_its_exceptions() -> None:
    for name, (_, storage_class) in storage.RUNS.items():
        assert storage.definition(name)["StorageClass"] == {"FromExistingClassName": storage_class}
    for excuse in judgement.exceptions(storage.EXCEPTIONS):
        assert excuse.runtimes <= storage.RUNS.keys()


def test_two_pods_at_once_are_not_asked_of_a_disk_that_a_guest_mounts() -> None:
    for name in storage.RUNS:
        can = storage.definition(name)["DriverInfo"]["Capabilities"]
        assert {can["multipods"], can["multiplePVsSameID"]} == {name != "guest"}


def test_the_packaged_classes_wait_for_the_first_pod_and_nothing_binds_at_once() -> None:
    found = list(yaml.safe_load_all((sidecars.MANIFESTS / "volumes.yaml").read_text()))
    classes = [one for one in found if one["kind"] == "StorageClass"]
    assert {one["volumeBindingMode"] for one in classes} == {"WaitForFirstConsumer"}
    daemons = next(one for one in found if one["kind"] == "DaemonSet")["spec"]["template"]["spec"]
    assert "--node-deployment-immediate-binding=false" in daemons["containers"][0]["args"]


def test_no_two_networks_of_a_cluster_overlap() -> None:
    nodes = [Place(number) for number in range(1, 5)]
    pods = ipaddress.ip_network(layout.PODS)
    own = [ipaddress.ip_network(node.pods) for node in nodes]
    assert all(one.subnet_of(pods) for one in own)
    assert len({*own}) == len(nodes)
    assert not pods.overlaps(ipaddress.ip_network(layout.SERVICES))
    assert ipaddress.ip_address(layout.DNS_SERVICE) in ipaddress.ip_network(layout.SERVICES)


def test_the_manifests_have_the_addresses_of_the_layout() -> None:
    found = list(yaml.safe_load_all(MANIFESTS.read_text()))
    service = next(one for one in found if one["kind"] == "Service")
    assert service["spec"]["clusterIP"] == layout.DNS_SERVICE
    slices = next(one for one in found if one["kind"] == "EndpointSlice")
    assert slices["endpoints"] == [{"addresses": [layout.CONTROL]}]


@pytest.mark.parametrize("name", ["apiserver", "admin", "node2"])
def test_a_clusters_authority_signs_for_everybody(name: str, tmp_path: Path) -> None:
    certificates.make(tmp_path, [Place(1), Place(2)])
    place = layout.certificates(tmp_path)
    verify = ["openssl", "verify", "-CAfile", f"{place}/ca.crt", f"{place}/{name}.crt"]
    subprocess.run(verify, check=True, capture_output=True)
    text = ["openssl", "x509", "-noout", "-subject", "-ext", "subjectAltName", "-in", f"{place}/{name}.crt"]
    said = subprocess.run(text, check=True, capture_output=True, text=True).stdout
    wanted = {"apiserver": layout.API_SERVICE, "admin": "system:masters", "node2": "system:node:node2"}
    assert wanted[name] in said


def test_a_program_that_ends_is_started_again(tmp_path: Path) -> None:
    program = keeper.Program("ends", ["true"], tmp_path)
    first = (tmp_path / "ends.pid").read_text()
    keeper.keep([program], lambda: (tmp_path / "ends.pid").read_text() != first)
    program.stop()
