"""kill -9 of whoever has a part in it, while pods come and go and while their tenant ends."""

from __future__ import annotations

import time
from random import Random

from tests.cluster.room import Host, eventually
from tests.patience import SLOWNESS
from tests.tenants_cluster.room import AGENT, OPERATOR, TenantCluster, server, tenant

PLACES = ("storm", "storm-test")


def _victims(here: TenantCluster, chance: Random) -> list[tuple[Host, str]]:
    """Everybody once, in an order by chance."""
    found: list[tuple[Host, str]] = [(here.cluster, OPERATOR)]
    found += [(node, program) for node in here.nodes for program in (AGENT, "orlopd", "kubelet")]
    return chance.sample(found, len(found))


def test_nothing_is_left_when_everybody_is_killed_in_the_middle(here: TenantCluster) -> None:
    before, objects, chance = here.traces(), here.objects(), Random(14)
    here.add(tenant("storm", PLACES))
    wanted: list[tuple[str, str]] = []
    for number, (host, program) in enumerate(_victims(here, chance)):
        one = (chance.choice(PLACES), f"storm{number}")
        here.cluster.apply(server(one[1], one[0], here.nodes[number % 2]))
        if len(wanted) > 2:
            place, name = wanted.pop(0)
            here.cluster.kubectl("delete", "pod", name, f"--namespace={place}", "--wait=false")
        wanted.append(one)
        time.sleep(chance.random() * 3 * SLOWNESS)  # no time is the wrong one
        host.kill(program)
    for place, name in wanted:
        here.cluster.wait(f"pod/{name}", "condition=Ready", f"--namespace={place}")

    def pods() -> set[tuple[str, str]]:
        found = [one for place in PLACES for one in here.cluster.json("get", "pods", f"-n={place}")["items"]]
        return {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in found}

    eventually(pods, lambda found: found == set(wanted))

    def leases() -> list[int]:
        """How many addresses each node has given."""
        command = "find /var/lib/orlop-tenants/leases -name '*.json' | wc -l"
        return [int(node.run("sh", "-c", command).out) for node in here.nodes]

    # Those of blue and green, and of the pods that were to stay.
    there = here.cluster.json("get", "pods", "--all-namespaces")["items"]
    tenants = [one for one in there if one["metadata"]["namespace"] in ("blue", "green", *PLACES)]
    on = [sum(one["spec"]["nodeName"] == node.name for one in tenants) for node in here.nodes]
    eventually(leases, lambda found: found == on)

    here.cluster.kubectl("delete", "tenant", "storm", "--wait=false")
    for host, program in _victims(here, chance):
        host.kill(program)
    here.cluster.wait("tenant/storm", "delete")
    here.leaves(before)
    eventually(here.objects, lambda found: found == objects)
