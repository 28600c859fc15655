"""``make tenants-demo``: two tenants with equal addresses on a cluster of two nodes, shown step by step.

Control plane, kubelets and virtual machines are real. Ends with 0 only when all that was shown is true;
nothing of it stays, however it ends. Needs root.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

from tests.cluster.room import ClusterNode, cluster, eventually
from tests.conformance.tools import ToolError
from tests.node import Done
from tests.tenants_cluster.room import PORT, TenantCluster, floating, pool, server, service, tenant

BOTH = ("blue", "green")
RANGE = "10.0.0.0/16"
DROPPED = r'counter packets ([1-9]\d*) bytes \d+ drop comment "([^"]+)"'
BOOT = "/proc/sys/kernel/random/boot_id"


class Untrue(AssertionError):
    """Something that was to be shown is not so."""


class Stage:
    """Tells a person what happens."""

    def __init__(self) -> None:
        self._began, self.shown = time.monotonic(), 0

    def step(self, title: str) -> None:
        """What comes now."""
        print(f"\n{time.monotonic() - self._began:4.0f} s  {title}", flush=True)

    def show(self, text: str) -> None:
        """What a command said."""
        print("\n".join(f"        | {line}" for line in text.rstrip().splitlines()), flush=True)

    def true(self, claim: str, holds: bool, seen: object = "") -> None:
        """Something that is so. Raises Untrue when it is not, with what was seen."""
        if not holds:
            raise Untrue(f"{claim}: not true; seen was {seen!r}")
        self.shown += 1
        print(f"        ✓ {claim}", flush=True)


def tenants(stage: Stage, here: TenantCluster) -> None:
    """Two tenants, and a server of each on both nodes."""
    stage.step(f"Two tenants, who both have the addresses {RANGE}")
    here.add(*(tenant(name, network={"cidr": RANGE}, quota={"floatingIPs": 2}) for name in BOTH))
    stage.show(here.cluster.kubectl("get", "tenants").out)
    stage.step("A web server of each tenant on each node, in a virtual machine, with a probe")
    # One node after the other: who comes first takes the first block of addresses.
    for number, node in enumerate(here.nodes, 1):
        here.run_pods(*(server(f"{name}{number}", name, node) for name in BOTH))
    rows = ["tenant  pod     node   its address  known to the cluster as"]
    for name in BOTH:
        for number, node in enumerate(here.nodes, 1):
            pod = f"{name}{number}"
            words = (name, pod, node.name, here.address(name, pod), here.alias(name, pod))
            rows.append("{:<7} {:<7} {:<6} {:<12} {}".format(*words))
    stage.show("\n".join(rows))
    for number in (1, 2):
        found = {here.address(name, f"{name}{number}") for name in BOTH}
        stage.true(f"blue{number} and green{number} have the same address", len(found) == 1, found)
    for name in BOTH:
        boots = {here.inside(name, f"{name}{number}", "cat", BOOT).out.strip() for number in (1, 2)}
        own = Path(BOOT).read_text().strip() not in boots
        stage.true(f"{name}'s pods have kernels of their own, which this machine's is not", own, boots)
        said = here.cluster.kubectl("get", "pods", f"--namespace={name}").out
        stage.true(f"the kubelets' probes of {name} pass, as ready pods say", said.count("1/1") == 2, said)


def reached(stage: Stage, here: TenantCluster) -> None:
    """Each tenant's pods reach each other, on both nodes."""
    stage.step("Who answers at the same addresses depends on who asks")
    for name in BOTH:
        for asks in (1, 2):
            for number in (1, 2):
                address = here.address(name, f"{name}{number}")
                done = here.fetch(name, f"{name}{asks}", f"http://{address}:{PORT}/hostname")
                claim = f"{name}{asks} asks {address} and gets the answer of {name}{number}"
                stage.true(claim, done.out == f"{name}{number}", done)


def apart(stage: Stage, here: TenantCluster) -> None:
    """Nothing of another tenant, of the nodes or of the cluster is reached."""
    stage.step("A tenant reaches nothing of the other, of the nodes, of the cluster")
    here.run_pods(server("green3", "green", here.nodes[1]))
    third = here.address("green", "green3")
    done = here.fetch("green", "green1", f"http://{third}:{PORT}/hostname")
    stage.true(f"green3 at {third} answers green1, and blue has nobody there", done.out == "green3", done)
    places = {"green3": [third]}
    for pod in ("green1", "green2", "green3"):
        places.setdefault(pod, []).append(here.alias("green", pod))
    urls = {f"{pod}, at {at}": f"http://{at}:{PORT}/" for pod, found in places.items() for at in found}
    for node in here.nodes:
        urls[f"the kubelet of {node.name}"] = f"https://{node.address}:10250/healthz"
    urls["the API server's Service"] = "https://10.96.0.1/healthz"
    here.run_pods(server("blue3", "blue", here.nodes[0]))
    for at in (here.address("blue", "blue3"), here.alias("blue", "blue3")):
        answered = here.answered("green", "green1", f"http://{at}:{PORT}/")
        stage.true(f"green1 does not reach blue3, at {at}", not answered)
    for asks in ("blue1", "blue2"):
        answered = here.answered("blue", asks, *urls.values())
        for what, url in urls.items():
            stage.true(f"{asks} does not reach {what}", url not in answered)
    stage.step("What stops them, as the routers of blue count it")
    for node, asks in zip(here.nodes, ("blue1", "blue2"), strict=True):

        def dropped(node: ClusterNode = node, asks: str = asks) -> dict[str, str]:
            # It counts anew when its rules change.
            here.answered("blue", asks, *urls.values())
            rules = node.run("nsenter", "--net=/run/netns/orlop-tenant-blue", "nft", "list", "ruleset").out
            return {name: count for count, name in re.findall(DROPPED, rules)}

        found = eventually(dropped, lambda names: {"nodes", "cluster"} <= names.keys())
        stage.show("\n".join(f"{node.name}: {name} dropped {count} packets" for name, count in found.items()))
        stage.true(f"guards on {node.name} dropped what {asks} tried", {"nodes", "cluster"} <= found.keys())


def served(stage: Stage, here: TenantCluster) -> None:
    """A Service leads to pods of its tenant, and of no other."""
    stage.step("Both tenants have a Service web")
    here.cluster.apply(*(service("web", name) for name in BOTH))
    for name in BOTH:
        for number in (1, 2):

            def asked(name: str = name, number: int = number) -> Done:
                return here.fetch(name, f"{name}{number}", f"http://web:{PORT}/hostname")

            done = eventually(asked, lambda done: done.code == 0)
            claim = f"{name}{number} asks for web, by this name, and gets the answer of {done.out}"
            stage.true(claim, done.out.startswith(name), done)
    done = here.fetch("blue", "blue1", f"http://web.green:{PORT}/")
    stage.true("blue1 asks for web.green, and there is no such name", "resolve" in done.err, done)
    host = here.cluster_ip("green", "web")
    answered = here.answered("blue", "blue1", f"http://{host}:{PORT}/")
    stage.true(f"blue1 does not reach green's web by its address either, {host}", not answered)


def visited(stage: Stage, here: TenantCluster) -> None:
    """The world reaches the pod that has a floating address."""
    stage.step("An address of the world's for blue2")
    here.cluster.apply(pool(), floating("door", "blue", "blue2"))
    url = f"http://{here.floating('blue', 'door')}:{PORT}/hostname"
    said = eventually(lambda: here.cluster.run("curl", "-sS", "-m", "10", url, check=False).out, bool)
    stage.show(here.cluster.kubectl("get", "floatingaddresses", "--all-namespaces").out)
    stage.true(f"who asks {url} from outside the cluster's nodes gets the answer of blue2", said == "blue2")
    stage.step("A load balancer for all of blue's servers")
    here.cluster.apply(service("front", "blue", type="LoadBalancer"))
    url = f"http://{here.front('blue', 'front')}:{PORT}/hostname"
    said = eventually(lambda: here.cluster.run("curl", "-sS", "-m", "10", url, check=False).out, bool)
    stage.true(f"who asks {url} from there gets the answer of {said}", said.startswith("blue"))


def ended(stage: Stage, here: TenantCluster, before: dict[str, list[str]], objects: set[str]) -> None:
    """The tenants are deleted, and nothing of them is left."""
    stage.step("The tenants are deleted")
    here.end(*BOTH)
    here.cluster.kubectl("delete", "addresspool", "uplink")
    left = here.objects() - objects
    stage.true("nothing of them is left in the API", not left, left)
    found = eventually(here.traces, lambda traces: traces == before)
    stage.true("nothing of them is left on the nodes: router, link, route, record, rule", found == before)


def play(stage: Stage) -> None:
    """All steps. Raises Untrue, or AssertionError for what did not come to pass."""
    stage.step(
        "A control plane and two nodes with kubelet, kube-proxy, orlopd (the first time, many minutes)"
    )
    with cluster(2, tenants=True, reports=Path("build/tenants-demo")) as one:
        here = TenantCluster(one)
        stage.show(one.kubectl("get", "nodes", "--output=wide").out)
        stage.step("orlop tenants install | kubectl apply -f -; an operator, and an agent on each node")
        here.install()
        before, objects = here.traces(), here.objects()
        tenants(stage, here)
        reached(stage, here)
        apart(stage, here)
        served(stage, here)
        visited(stage, here)
        ended(stage, here, before, objects)
        stage.step("The nodes stop, remove their pods, and look for what is left")
    stage.true("nothing is left", True)


def main() -> int:
    """0 when all that was shown is true."""
    if os.geteuid() != 0:
        print("tenants-demo: a kubelet needs root", file=sys.stderr)
        return 2
    stage = Stage()
    try:
        play(stage)
    except (AssertionError, ToolError) as error:
        print(f"\n        ✗ {error}\ntenants-demo: failed; logs: build/tenants-demo", file=sys.stderr)
        return 1
    print(f"\ntenants-demo: {stage.shown} things were shown, all are true")
    return 0


if __name__ == "__main__":
    sys.exit(main())
