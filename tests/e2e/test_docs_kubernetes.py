"""The blocks of docs/kubernetes.md that can be tried here; ``make bare`` runs the one that installs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from orlop.config import DEFAULT_PATH, load
from tests.conformance.tools import cache_dir
from tests.node import Node
from tests.page import blocks
from tests.patience import PATIENCE

BLOCKS = blocks("kubernetes.md")
KNOWN = {"cgroupDriver", "containerRuntimeEndpoint", "featureGates", "runtimeRequestTimeout"}
"""Fields that kubelet.config.k8s.io/v1beta1 has, for a machine where no kubelet was built."""


def test_every_block_is_tried() -> None:
    assert BLOCKS.keys() == {"install", "configuration", "cluster", "pod"}


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    text = BLOCKS["configuration"]
    assert text.startswith(f"# {DEFAULT_PATH}\n")
    path = tmp_path / "config.toml"
    path.write_text(text)
    config = load(path)
    assert (config.default_handler, config.cgroup_driver) == ("auto", "systemd")


def test_kubeadm_and_kubelet_are_told_of_the_same_runtime(tmp_path: Path) -> None:
    kubeadm, _, kubelet = yaml.safe_load_all(BLOCKS["cluster"])
    assert kubeadm["nodeRegistration"]["criSocket"] == kubelet["containerRuntimeEndpoint"]
    assert kubelet["containerRuntimeEndpoint"] == f"unix://{load(None).socket}"
    assert f'cgroup_driver = "{kubelet["cgroupDriver"]}"' in BLOCKS["configuration"]
    built = sorted((cache_dir() / "node-e2e").glob("*/kubelet"))
    if not built:
        assert kubelet.keys() - {"apiVersion", "kind"} <= KNOWN
        return
    said = configured(built[0], kubelet, tmp_path)
    assert "lenient decoding" not in said and "failed to validate" not in said, said
    # What it cannot do without: it has come past its configuration.
    assert "/nonexistent" in said, said
    assert "lenient decoding" in configured(built[0], kubelet | {"cgroupDrivers": "x"}, tmp_path)


def configured(program: Path, document: dict[str, object], scratch: Path) -> str:
    """What the kubelet says as it starts with that configuration and no API server."""
    path = scratch / "kubelet.yaml"
    # This machine may have version 1 of control groups, which is not what is looked at.
    path.write_text(yaml.safe_dump(document | {"failCgroupV1": False}))
    argv = [program, "--config", path, "--kubeconfig", "/nonexistent", "--root-dir", scratch / "kubelet"]
    isolated = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", *argv]
    done = subprocess.run(isolated, capture_output=True, text=True, timeout=120 * PATIENCE, check=False)
    assert done.returncode != 0
    return done.stderr


def test_the_pod_runs_in_a_vm(shared_node: Node) -> None:
    pod = yaml.safe_load(BLOCKS["pod"])["spec"]
    (container,) = pod["containers"]
    handler = pod["runtimeClassName"]  # the classes of packaging/kubernetes have the name of theirs
    pod_id, running = shared_node.run(container["image"], *container["command"], handler=handler)
    said = shared_node.wait_log(running, "kernel ")
    assert Path("/proc/sys/kernel/osrelease").read_text().strip() not in said
    shared_node.remove_pod(pod_id)
