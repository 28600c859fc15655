"""A cluster within its enclosure: network, registry, control plane, nodes.

``python -m tests.cluster.control DIRECTORY``, as :func:`tests.cluster.room.cluster` starts it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster import keeper, layout
from tests.cluster.layout import Place
from tests.conformance import images, tools
from tests.node_e2e import enclosure, programs

REGISTRY = f"{layout.CONTROL}:5000"
ETCD = "http://127.0.0.1:2379"
MEMBER = "tests.cluster.member"


def _ip(*arguments: str) -> None:
    tools.run(["ip", *arguments])


def network(nodes: Sequence[Place]) -> None:
    """A bridge, a network namespace per node on it, and the routes to the nodes' pods."""
    _ip("link", "add", layout.BRIDGE, "type", "bridge")
    _ip("address", "add", f"{layout.CONTROL}/24", "dev", layout.BRIDGE)
    _ip("link", "set", layout.BRIDGE, "up")
    for node in nodes:
        _ip("netns", "add", node.name)
        # Both ends at once: a node's interface has never been in the wrong namespace.
        _ip("link", "add", node.name, "type", "veth", "peer", "name", "eth0", "netns", node.name)
        _ip("link", "set", node.name, "master", layout.BRIDGE, "up")
        _ip("-n", node.name, "link", "set", "lo", "up")
        _ip("-n", node.name, "address", "add", f"{node.address}/24", "dev", "eth0")
        _ip("-n", node.name, "link", "set", "eth0", "up")
        _ip("-n", node.name, "route", "add", "default", "via", layout.CONTROL)
        _ip("route", "add", node.pods, "via", node.address)
        for other in nodes:
            if other != node:
                _ip("-n", node.name, "route", "add", other.pods, "via", other.address)
        forward = f"/run/netns/{node.name}"
        tools.run(["nsenter", f"--net={forward}", "sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])


def api_server(directory: Path) -> list[str]:
    """Its flags."""
    pki = layout.certificates(directory)
    return [
        f"--etcd-servers={ETCD}",
        f"--advertise-address={layout.CONTROL}",
        f"--secure-port={layout.API_PORT}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        "--service-account-issuer=https://kubernetes.default.svc." + layout.DOMAIN,
        f"--service-account-key-file={pki}/accounts.pub",
        f"--service-account-signing-key-file={pki}/accounts.key",
        f"--service-cluster-ip-range={layout.SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--kubelet-client-certificate={pki}/admin.crt",
        f"--kubelet-client-key={pki}/admin.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={pki}/front.crt",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki}/front-proxy.crt",
        f"--proxy-client-key-file={pki}/front-proxy.key",
        "--allow-privileged=true",
        # No kube-proxy where the API server is: it finds the pods of a Service by itself.
        "--enable-aggregator-routing=true",
    ]


COREFILE = """
.:53 {
    bind CONTROL
    errors
    ready
    cache 5
    kubernetes DOMAIN in-addr.arpa ip6.arpa {
        kubeconfig KUBECONFIG
        pods insecure
        ttl 5
    }
}
"""


def corefile(directory: Path) -> Path:
    """CoreDNS' configuration."""
    text = COREFILE.replace("CONTROL", layout.CONTROL).replace("DOMAIN", layout.DOMAIN)
    file = directory / "Corefile"
    file.write_text(text.replace("KUBECONFIG", str(layout.kubeconfig(directory))))
    return file


def control_plane(directory: Path, built: programs.Programs) -> list[keeper.Program]:
    """Store, API server, controllers, scheduler, DNS: started in any order, they wait for each other."""
    pki, logs = layout.certificates(directory), layout.logs(directory)

    def own(name: str) -> list[str]:
        config = layout.kubeconfig(directory, name)
        return [f"--kubeconfig={config}", "--leader-elect=false"]

    controllers = [
        *own("kube-controller-manager"),
        f"--root-ca-file={pki}/ca.crt",
        f"--service-account-private-key-file={pki}/accounts.key",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        "--use-service-account-credentials=true",
    ]
    etcd = tools.debian_packages(["etcd-server"]) / "usr/bin/etcd"
    # Gone with the enclosure, so it need not be written to a disk.
    store = [etcd, "--data-dir=/run/etcd", f"--listen-client-urls={ETCD}", f"--advertise-client-urls={ETCD}"]
    commands: dict[str, list[Any]] = {
        "etcd": store,
        "kube-apiserver": [built.directory / "kube-apiserver", *api_server(directory)],
        "kube-controller-manager": [built.directory / "kube-controller-manager", *controllers],
        "kube-scheduler": [built.directory / "kube-scheduler", *own("kube-scheduler")],
        "coredns": [tools.peer("coredns"), "-conf", corefile(directory)],
    }
    return [keeper.Program(name, argv, logs) for name, argv in commands.items()]


def member(directory: Path, node: Place) -> subprocess.Popen[bytes]:
    """A node in an enclosure of its own, within this one."""
    place = directory / node.name
    place.mkdir(0o711)
    layout.orders(place).mkdir()
    command = [sys.executable, "-m", MEMBER, str(directory), str(node.number)]
    log = layout.logs(directory) / f"{node.name}.log"
    return enclosure.start(place, command, log, 4, Path("/run/netns", node.name))


def main() -> int:
    """Run until the file that says stop is there; 0 when all nodes ended well and left nothing."""
    directory = Path(sys.argv[1])
    order = json.loads((directory / layout.ORDER).read_text())
    nodes = [Place(number) for number in range(1, order["nodes"] + 1)]
    built = programs.build(programs.CLUSTER)
    network(nodes)
    with images.serve(Path(order["storage"]), REGISTRY):
        plane = control_plane(directory, built)
        members = [member(directory, node) for node in nodes]

        def over() -> bool:
            ended = any(one.poll() is not None for one in members)
            return ended or (directory / layout.STOP).exists()

        ordered = keeper.Ordered(layout.orders(directory), layout.logs(directory))
        keeper.keep([*plane, ordered], over)
        (directory / layout.STOP).touch()
        codes = [one.wait() for one in members]
    # The control plane ends with the enclosure.
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
