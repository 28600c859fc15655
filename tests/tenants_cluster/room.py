"""A cluster of two nodes with Orlop's tenants: their operator, and an agent on each node. Needs root.

    with tenant_cluster() as here:
        here.add(tenant("blue"))
        here.run_pods(server("one", "blue", here.nodes[0]))

Operator and agents run as processes with the rights of the service accounts that ``orlop tenants install``
makes; an agent's token is bound to its node, as one in a pod would be.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import unified_diff
from pathlib import Path
from typing import Any

import yaml

from orlop.tenants import names
from tests.cluster import layout
from tests.cluster.room import Cluster, ClusterNode, cluster, eventually
from tests.conformance import tools
from tests.conformance.images import E2E
from tests.node import Done
from tests.patience import PATIENCE, SLOWNESS

OPERATOR, AGENT = "operator", "agent"
SYSTEM = "orlop-system"
ACCOUNTS = {OPERATOR: "orlop-tenants", AGENT: "orlop-tenants-agent"}
SOCKET = "/run/orlop-tenants/agent.sock"
PORT = 8080
SHORT = 5.0 * SLOWNESS
"""Seconds that whoever must not be answered waits for an answer."""
LONG = 60.0 * PATIENCE
ORLOP = (sys.executable, "-m", "orlop.cli.main")
OF_CLUSTER = (f"--closed={layout.PODS}", f"--closed={layout.SERVICES}", f"--dns={layout.DNS_SERVICE}")
"""What agents are told of the cluster."""
WORKLOADS = ("Deployment", "DaemonSet")


def tenant(name: str, namespaces: Sequence[str] = (), **spec: Any) -> dict[str, Any]:
    """A Tenant, with a namespace of its name unless told otherwise."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "Tenant",
        "metadata": {"name": name},
        "spec": {"namespaces": list(namespaces or [name]), **spec},
    }


def server(name: str, namespace: str, node: ClusterNode, **container: Any) -> dict[str, Any]:
    """A pod on a node that answers /hostname with its name, and is ready when the kubelet got an answer.

    ``container`` are more fields of its container.
    """
    probe = {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1, "timeoutSeconds": 30}
    main: dict[str, Any] = {
        "name": "web",
        "image": f"{E2E}/agnhost:2.63.0",
        "args": ["netexec", f"--http-port={PORT}"],
        "readinessProbe": probe,
        "resources": {"requests": {"cpu": "10m"}, "limits": {"cpu": "1", "memory": "128Mi"}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name, "part": "server"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node.name},
            "containers": [main | container],
            "terminationGracePeriodSeconds": 1,
        },
    }


def service(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """A Service for all servers of a namespace."""
    ports = [{"port": PORT}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"part": "server"}, "ports": ports, **spec},
    }


def pool() -> dict[str, Any]:
    """Addresses on the nodes' own network that nobody has."""
    begin = layout.CONTROL.rpartition(".")[0]
    return {
        "apiVersion": names.API_VERSION,
        "kind": "AddressPool",
        "metadata": {"name": "uplink"},
        "spec": {"ranges": [f"{begin}.240-{begin}.249"]},
    }


def floating(name: str, namespace: str, pod: str) -> dict[str, Any]:
    """An address of the world's for a pod."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "FloatingAddress",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"pod": pod},
    }


class TenantCluster:
    """A cluster with Orlop's tenants installed."""

    def __init__(self, one: Cluster) -> None:
        self.cluster, self.nodes = one, one.nodes

    def apply(self, *options: str, workloads: bool = True) -> None:
        """What an administrator does: nodes have ranges of aliases, what ``orlop tenants install`` prints is
        applied, as far as wanted."""
        for node in self.nodes:
            aliases = f"{names.ALIASES}={node.place.aliases}"
            self.cluster.kubectl("annotate", "node", node.name, aliases)
        printed = tools.run([*ORLOP, "tenants", "install", *OF_CLUSTER, *options])
        objects = [one for one in yaml.safe_load_all(printed) if workloads or one["kind"] not in WORKLOADS]
        self.cluster.apply({"apiVersion": "v1", "kind": "List", "items": objects})
        self.cluster.wait("crd", "condition=Established", "--all")

    def install(self) -> None:
        """The same with processes in place of the pods of an image."""
        self.apply(workloads=False)
        self.cluster.keep(OPERATOR, *self._as(OPERATOR, "operator"), "tenants", "operator")
        for node in self.nodes:
            bound = ("--bound-object-kind=Node", f"--bound-object-name={node.name}")
            agent = self._as(AGENT, f"agent-{node.name}", *bound)
            node.keep(AGENT, *agent, "tenants", "agent", f"--node={node.name}", *OF_CLUSTER)
        for node in self.nodes:
            self.serving(node)

    def _as(self, program: str, user: str, *bound: str) -> list[str]:
        """The beginning of a command line of orlop's with the rights of an account."""
        account = ACCOUNTS[program]
        token = self.cluster.kubectl("create", "token", account, f"--namespace={SYSTEM}", *bound).out.strip()
        directory = self.cluster.directory
        document = json.loads(layout.kubeconfig(directory).read_text())
        document["users"][0]["user"] = {"token": token}
        file = layout.kubeconfig(directory, user)
        file.write_text(json.dumps(document))
        return ["env", f"KUBECONFIG={file}", *ORLOP]

    def serving(self, node: ClusterNode) -> None:
        """Wait until a node's agent takes calls."""
        eventually(lambda: node.run("test", "-S", SOCKET, check=False).code, lambda code: code == 0)

    # --- tenants and pods ---------------------------------------------------------------------------

    def add(self, *tenants: Mapping[str, Any]) -> None:
        """Apply tenants and wait until they are Active."""
        self.cluster.apply(*tenants)
        for one in tenants:
            self.cluster.wait(f"tenant/{one['metadata']['name']}", "jsonpath={.status.phase}=Active")

    def end(self, *tenants: str) -> None:
        """Delete tenants and wait until they are gone."""
        self.cluster.kubectl("delete", "tenant", *tenants, "--wait=false")
        for name in tenants:
            self.cluster.wait(f"tenant/{name}", "delete")

    def run_pods(self, *pods: Mapping[str, Any]) -> None:
        """Apply pods and wait until they are ready."""
        self.cluster.apply({"apiVersion": "v1", "kind": "List", "items": list(pods)})
        for one in pods:
            about = one["metadata"]
            self.cluster.wait(f"pod/{about['name']}", "condition=Ready", f"--namespace={about['namespace']}")

    def pod(self, namespace: str, name: str) -> Any:
        """A pod as the API server has it."""
        return self.cluster.json("get", "pod", name, f"--namespace={namespace}")

    def alias(self, namespace: str, name: str) -> str:
        """A pod's address as the cluster knows it."""
        return str(self.pod(namespace, name)["status"]["podIP"])

    def address(self, namespace: str, name: str) -> str:
        """A pod's address in its tenant's network."""

        def told() -> str:
            annotations = self.pod(namespace, name)["metadata"].get("annotations", {})
            return str(annotations.get(names.ADDRESS, ""))

        return eventually(told, bool)

    def cluster_ip(self, namespace: str, name: str) -> str:
        """The address of a Service."""
        return str(self.cluster.json("get", "service", name, f"--namespace={namespace}")["spec"]["clusterIP"])

    def floating(self, namespace: str, name: str) -> str:
        """The address of the world's that an object was given."""

        def given() -> str:
            about = self.cluster.json("get", "floatingaddress", name, f"--namespace={namespace}")
            return str(about.get("status", {}).get("address", ""))

        return eventually(given, bool)

    def front(self, namespace: str, name: str) -> str:
        """The address of the world's of a Service."""

        def given() -> str:
            about = self.cluster.json("get", "service", name, f"--namespace={namespace}")
            ingress = about["status"].get("loadBalancer", {}).get("ingress", ())
            return next((str(one["ip"]) for one in ingress), "")

        return eventually(given, bool)

    def inside(self, namespace: str, pod: str, *argv: str, check: bool = True) -> Done:
        """Run a command in a pod."""
        return self.cluster.kubectl("exec", f"--namespace={namespace}", pod, "--", *argv, check=check)

    def fetch(self, namespace: str, pod: str, url: str, seconds: float = LONG) -> Done:
        """What a pod gets from a URL."""
        return self.inside(namespace, pod, *curl(url, seconds), check=False)

    def answered(self, namespace: str, pod: str, *urls: str) -> list[str]:
        """Those of the URLs at which a pod gets an answer; all are asked at once."""
        script = 'for url; do (curl -k -sS -m "$0" "$url" >/dev/null 2>&1 && echo "$url") & done; wait'
        return self.inside(namespace, pod, "sh", "-c", script, f"{SHORT:g}", *urls).out.split()

    def shell(self, script: str, *arguments: str) -> Done:
        """Run a script where the control plane is; ``$KUBECTL`` in it is the administrator's kubectl."""
        kubectl = shlex.join(self.cluster.administrator())
        return self.cluster.run("env", f"KUBECTL={kubectl}", "sh", "-euc", script, "sh", *arguments)

    # --- what is on the nodes -----------------------------------------------------------------------

    def traces(self) -> dict[str, list[str]]:
        """All that tenants' networks have on each node: routers, links, routes, records, rules."""
        return {node.name: node.run("sh", "-euc", TRACES).out.splitlines() for node in self.nodes}

    def leaves(self, before: Mapping[str, Sequence[str]]) -> None:
        """Wait until the nodes have what they had before. Raises AssertionError with the difference."""

        def differs() -> list[str]:
            pairs = [(name, before[name], found) for name, found in self.traces().items()]
            return [line for name, *pair in pairs for line in unified_diff(*pair, name, name, n=0)]

        eventually(differs, lambda found: not found)

    def objects(self) -> set[str]:
        """The names of all that tenants have in the API, and of what is like it."""
        kinds = "tenants,networks,namespaces,clusterroles,clusterrolebindings,rolebindings,serviceaccounts"
        kinds += ",pods,services,resourcequotas,limitranges,networkpolicies"
        return set(self.cluster.kubectl("get", kinds, "--all-namespaces", "--output=name").out.split())


# Rules without what they have counted.
TRACES = """
mkdir -p /run/netns
ls /run/netns
ip -oneline link | sed -nE 's/^[0-9]+: (ot-[^@:]*).*/link \\1/p'
ip -4 route | sed -n '/ ot-/p'
find /var/lib/orlop-tenants -type f | sort
nft -s list tables | sed /kube-proxy/d | sort
nft -s list table inet orlop_tenants
"""


def curl(url: str, seconds: float) -> list[str]:
    """The command that fetches a URL."""
    return ["curl", "-sS", "-m", f"{seconds:g}", url]


@contextlib.contextmanager
def tenant_cluster(reports: Path | None = None) -> Iterator[TenantCluster]:
    """Two nodes with tenants installed, until the block ends."""
    with cluster(2, tenants=True, reports=reports) as one:
        here = TenantCluster(one)
        here.install()
        yield here
