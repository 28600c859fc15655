"""A node of a cluster within its enclosure: orlopd, CRI-O above it, or containerd as its peer; and a kubelet.

``python -m tests.cluster.member DIRECTORY NUMBER``. At the end its pods are removed, and nothing of them
may be left.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import bridged
from tests.cluster import control, keeper, layout
from tests.cluster.layout import Place
from tests.crio.daemon import crio
from tests.node import node
from tests.node_e2e import containerd, programs, suite
from tests.node_e2e.judgement import PEER

ORLOPD, CRIO = "orlopd", "crio"


def kubelet_config(directory: Path, endpoint: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """The kubelet's configuration: that of the node suite, for a cluster."""
    certificates = layout.certificates(directory)
    config: dict[str, Any] = suite.KUBELET | {
        "containerRuntimeEndpoint": endpoint,
        "authentication": {
            "x509": {"clientCAFile": f"{certificates}/ca.crt"},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDomain": layout.DOMAIN,
        "clusterDNS": [layout.DNS_SERVICE],
        "featureGates": {**suite.GATES, "PodAndContainerStatsFromCRI": True},
    }
    # That of a kubelet without an API server.
    del config["podCIDR"]
    return {**config, **more}


def proxy_config(directory: Path, place: Place) -> dict[str, Any]:
    """kube-proxy's configuration; it leaves the settings of the machine's kernel alone."""
    leave = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(layout.kubeconfig(directory, "kube-proxy"))},
        "mode": "nftables",
        "clusterCIDR": layout.PODS,
        "hostnameOverride": place.name,
        "conntrack": leave,
    }


def start(
    directory: Path, place: Place, endpoint: str, built: programs.Programs, kubelet: Mapping[str, Any]
) -> list[keeper.Program]:
    """Kubelet and kube-proxy."""
    home = directory / place.name
    logs = home / "logs"
    config, proxy = home / "kubelet.yaml", home / "proxy.yaml"
    # JSON is YAML.
    config.write_text(json.dumps(kubelet_config(directory, endpoint, kubelet), indent=1))
    proxy.write_text(json.dumps(proxy_config(directory, place), indent=1))
    commands: dict[str, list[Any]] = {
        "kubelet": [
            built.directory / "kubelet",
            f"--config={config}",
            f"--kubeconfig={layout.kubeconfig(directory, place.name)}",
            f"--hostname-override={place.name}",
            f"--node-ip={place.address}",
            "--node-labels=orlop.io/runtime=true",
        ],
        "kube-proxy": [built.directory / "kube-proxy", f"--config={proxy}"],
    }
    return [keeper.Program(name, argv, logs) for name, argv in commands.items()]


def ours(directory: Path, place: Place, built: programs.Programs, order: Mapping[str, Any]) -> None:
    """Run with orlopd until told to stop; it is started again when it ends."""
    home = directory / place.name
    logs = home / "logs"
    extra = {"network": {"conf_dir": str(home / "cni")}, **order["extra"]}
    # All nodes have the machine's host name.
    extra["csi"] = {"node": place.name, **extra.get("csi", {})}
    with node(
        control.REGISTRY, handler=order["handler"], extra=extra, prefix=f"{directory.name}/{place.name}/n"
    ) as one:
        (logs / f"{ORLOPD}.log").hardlink_to(one.settings.log)
        others = start(directory, place, f"unix://{one.socket}", built, order["kubelet"])
        pid = 0

        def over() -> bool:
            nonlocal pid
            if not one.alive():
                one.start()
            if pid != one.pid:
                pid = one.pid
                keeper.write_pid(logs / f"{ORLOPD}.pid", pid)
            return (directory / layout.STOP).exists()

        ordered = keeper.Ordered(layout.orders(home), logs)
        keeper.keep([*others, ordered], over)
        # What was asked for goes on to its end: pods may need it to be removed.
        for program in others:
            program.stop()


def peer(directory: Path, place: Place, built: programs.Programs, order: Mapping[str, Any]) -> None:
    """Run with containerd and runc until told to stop. What its pods leave is gone with the enclosure."""
    home = directory / place.name
    # Statistics by way of the CRI are for a runtime that a kubelet does not know.
    own = {"featureGates": suite.GATES, **order["kubelet"]}
    log = home / "logs" / f"{PEER}.log"
    with containerd.running(home / PEER, control.REGISTRY, log, home / "cni") as endpoint:
        others = start(directory, place, endpoint, built, own)
        keeper.keep(others, (directory / layout.STOP).exists)
        for program in others:
            program.stop()


def above(directory: Path, place: Place, built: programs.Programs, order: Mapping[str, Any]) -> None:
    """Run with CRI-O, and orlopd below it, until told to stop."""
    home = directory / place.name
    extra = {"network": {"conf_dir": str(home / "cni")}, **order["extra"]}
    (home / CRIO).mkdir()
    with (
        node(control.REGISTRY, extra=extra, prefix=f"{directory.name}/{place.name}/n") as one,
        crio(home / CRIO, one, control.REGISTRY, network=home / "cni") as serving,
    ):
        (home / "logs" / f"{ORLOPD}.log").hardlink_to(one.settings.log)
        (home / "logs" / f"{CRIO}.log").hardlink_to(serving.log)
        one.wait_ready()
        others = start(directory, place, f"unix://{serving.socket}", built, order["kubelet"])
        keeper.keep(others, (directory / layout.STOP).exists)
        for program in others:
            program.stop()


def main() -> int:
    """Be a node until the file that says stop is there."""
    directory, place = Path(sys.argv[1]), Place(int(sys.argv[2]))
    order = json.loads((directory / layout.ORDER).read_text())
    home, built = directory / place.name, programs.build(programs.CLUSTER)
    (home / "logs").mkdir()
    last = place.plugged if order["tenants"] else ""
    # No disguise: nodes have routes to each other's pods.
    network = bridged.conflist("cluster", "cni0", place.pods, home / "ipam", masquerade=False, last=last)
    if order["tenants"]:
        network = bridged.for_tenants(network)
    bridged.write(home / "cni", network)
    run = peer if place.name in order["peers"] else above if place.name in order["crio"] else ours
    run(directory, place, built, order)
    return 0


if __name__ == "__main__":
    sys.exit(main())
