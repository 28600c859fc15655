"""What ``orlop node`` does to the files of a node; ``make bare`` does it to Debian."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orlop.cli.node import files, kubelet
from orlop.cli.node.host import NodeHost
from orlop.config import Config, load

PACKAGING = Path(__file__).parents[2] / "packaging" / "kubernetes"


@pytest.fixture
def host(tmp_path: Path) -> NodeHost:
    return NodeHost(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("/etc/default/kubelet", 'KUBELET_EXTRA_ARGS="--v=2 --container-runtime-endpoint=unix:///old.sock"'),
        (
            "/var/lib/kubelet/kubeadm-flags.env",
            'KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix:///old.sock --x"',
        ),
        ("/var/lib/kubelet/instance-config.yaml", "containerRuntimeEndpoint: unix:///old.sock\n"),
        ("/var/lib/kubelet/config.yaml", "containerRuntimeEndpoint: unix:///old.sock\n"),
    ],
)
def test_the_runtime_of_before_is_found(host: NodeHost, name: str, text: str) -> None:
    assert kubelet.endpoint(host) == "unix:///run/containerd/containerd.sock"
    host.write(name, text)
    assert kubelet.endpoint(host) == "unix:///old.sock"
    kubelet.use(host)
    assert kubelet.used(host) and kubelet.endpoint(host) == "unix:///old.sock"


def test_the_flag_is_the_last_one_and_goes_again(host: NodeHost) -> None:
    host.write("/etc/default/kubelet", "# a comment\nKUBELET_EXTRA_ARGS=--node-ip=192.0.2.1\n")
    kubelet.use(host)
    kubelet.use(host)
    said = host.read(kubelet.ENVIRONMENT)
    assert (
        said
        == f'KUBELET_EXTRA_ARGS="--node-ip=192.0.2.1 --container-runtime-endpoint=unix://{Config().socket}"\n'
    )
    kubelet.forget(host)
    kubelet.forget(host)
    assert not kubelet.used(host)
    left = [path for path in host.root.rglob("*") if path.is_file()]
    assert left == [host.path("/etc/default/kubelet")]


def test_the_packaged_configuration_is_the_default_and_its_comments_are_true(tmp_path: Path) -> None:
    packaged = files.path(files.CONFIGURATION).read_text()
    assert load(files.path(files.CONFIGURATION)) == Config()
    shown = tmp_path / "config.toml"
    lines = [line for line in packaged.splitlines() if not line.startswith("# ")]
    shown.write_text("\n".join(line.removeprefix("#") for line in lines))
    found = load(shown)
    assert found.images.pinned == ("registry.k8s.io/pause:*",)
    assert found == Config(images=found.images), "what the comments show are the defaults"


def test_the_manifests_name_what_exists() -> None:
    handlers = [one["handler"] for one in yaml.safe_load_all((PACKAGING / "runtimeclasses.yaml").read_text())]
    assert handlers == ["vm", "process"]
    pods = [
        one["spec"]["template"]["spec"]
        for one in yaml.safe_load_all((PACKAGING / "daemonset.yaml").read_text())
    ]
    (rollback,) = yaml.safe_load_all((PACKAGING / "rollback.yaml").read_text())
    for pod in (*pods, rollback["spec"]):
        (container,) = pod.get("initContainers") or pod["containers"]
        assert container["command"][:2] == ["orlop", "node"] and container["securityContext"]["privileged"]
        (mount,) = container["volumeMounts"]
        assert container["command"][container["command"].index("--root") + 1] == mount["mountPath"]
        assert {one["name"]: one["hostPath"]["path"] for one in pod["volumes"]} == {mount["name"]: "/"}
