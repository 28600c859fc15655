"""Volumes of others' drivers in pods under both handlers: used, looked at, and gone without a trace."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import pytest

from tests.cluster.room import Cluster, ClusterNode, eventually
from tests.csi_others.drivers import USER
from tests.patience import PATIENCE

HANDLERS = ("vm", "process")
LIMIT = 180.0 * PATIENCE
SLEEP = "sleep 1000000"
PODS = "/var/lib/kubelet/pods"
AGENT = "/run/nodeagent"
SIZE = 64 << 20
KNOWN = "all good to workload with service account default"
"""What Calico's agent answers to a pod that it knows."""

SWAP = """
cd "$1" && mkdir "..$2" && echo "$2" >"..$2/word" && old=$(readlink ..data)
ln -s "..$2" ..data_tmp && date +%s.%N && mv -T ..data_tmp ..data
[ -e word ] || ln -s ..data/word word
[ -z "$old" ] || rm -r "$old"
"""
"""Changes a volume as drivers of secrets do, and says when it began to show that."""

WATCH = """
while :; do
    { read -r new <"$0"; } 2>/dev/null
    [ "$new" = "$old" ] || echo "saw $new"
    old=$new
    usleep 10000
done
"""


@dataclass
class Used:
    """A pod that uses a volume, and the node that it is on."""

    cluster: Cluster
    name: str
    uid: str = ""

    @property
    def node(self) -> ClusterNode:
        return self.cluster.nodes[0]

    def inside(self, script: str, container: str = "main", *, check: bool = True) -> str:
        done = self.cluster.kubectl(
            "exec", self.name, f"--container={container}", "--", "sh", "-c", script, check=check
        )
        return done.out.strip()

    def mounted(self) -> list[str]:
        """What the node has mounted for the pod."""
        lines = self.node.run("cat", "/proc/self/mountinfo").out.splitlines()
        return [line.split()[4] for line in lines if f"{PODS}/{self.uid}/" in line]

    def end(self) -> None:
        """Remove it: nothing of it stays on the node."""
        self.cluster.kubectl("delete", "pod", self.name, timeout=LIMIT)
        eventually(self.mounted, lambda left: not left)
        there = ("sh", "-c", f"[ ! -e {PODS}/{self.uid} ] || find {PODS}/{self.uid}")
        eventually(lambda: self.node.run(*there, check=False).out, lambda left: not left)


def container(name: str, *mounts: dict[str, Any], script: str = SLEEP) -> dict[str, Any]:
    return {
        "name": name,
        "image": USER,
        "command": ["sh", "-c", script, "/agent/word"],
        "volumeMounts": list(mounts),
    }


def manifest(
    name: str, handler: str, volume: dict[str, Any], *containers: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """A pod of a user who is not root."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "runtimeClassName": handler,
            "securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000},
            "terminationGracePeriodSeconds": 1,
            "containers": list(containers),
            "volumes": [{"name": "data", **volume}],
            **more,
        },
    }


@contextmanager
def used(cluster: Cluster, pod: dict[str, Any]) -> Iterator[Used]:
    """The pod once it runs. In the end nothing is left of it."""
    one = Used(cluster, pod["metadata"]["name"])
    cluster.apply(pod)
    try:
        cluster.wait(f"pod/{one.name}", "condition=Ready")
        one.uid = cluster.json("get", "pod", one.name)["metadata"]["uid"]
        yield one
    except BaseException:
        print(cluster.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False).out)
        cluster.kubectl("delete", "pod", one.name, "--force", "--grace-period=0", check=False)
        raise
    one.end()


def restart(cluster: Cluster, what: str, namespace: str) -> None:
    cluster.kubectl("rollout", "restart", what, f"--namespace={namespace}")
    cluster.rolled_out(what, f"--namespace={namespace}")


# Calico's: a tmpfs with the directory of the node's agent in it, in which that makes a socket


def with_agent(name: str, handler: str, script: str = SLEEP) -> dict[str, Any]:
    whole = {"name": "data", "mountPath": "/agent"}
    part = {"name": "data", "mountPath": "/sub", "subPath": "nodeagent", "readOnly": True}
    there = "until [ -S /agent/nodeagent/socket ]; do usleep 50000; done"
    return manifest(
        name,
        handler,
        {"csi": {"driver": "csi.tigera.io"}},
        container("main", whole, script=script),
        container("second", part),
        # The agent makes its socket when it comes to that, and a VM's container has those that there are.
        initContainers=[container("waiting", whole, script=there)],
    )


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_pod_reaches_the_nodes_agent(handler: str, driven: Cluster) -> None:
    with used(driven, with_agent(f"agent-{handler}", handler)) as one:

        def asked() -> list[str]:
            ways = (("main", "/agent/nodeagent/socket"), ("second", "/sub/socket"))
            return [one.inside(f"asker {path} 2>&1", name, check=False) for name, path in ways]

        def known(answers: list[str]) -> bool:
            return answers == [KNOWN] * 2

        assert known(asked())
        targets = [place for place in one.mounted() if "kubernetes.io~csi" in place]
        assert [place.removeprefix(targets[0]) for place in sorted(targets)] == ["", "/nodeagent"]
        # The agent comes again, the driver does, and the daemon.
        restart(driven, "daemonset/nodeagent", "calico-system")
        eventually(asked, known)
        restart(driven, "daemonset/csi-node-driver", "calico-system")
        assert known(asked())
        one.node.kill_orlopd()
        eventually(asked, known)
        left = f"grep -l {one.uid} {AGENT}/creds/* && ls {AGENT}/mount"
        assert one.node.run("sh", "-c", left).out
    assert not one.node.run("sh", "-c", f"grep -l {one.uid} {AGENT}/creds/*", check=False).out
    assert not one.node.run("ls", f"{AGENT}/mount").out


@pytest.mark.parametrize("handler", HANDLERS)
def test_what_a_driver_swaps_is_seen(handler: str, driven: Cluster) -> None:
    """In the tmpfs of Calico's volume, where a driver of secrets would."""
    with used(driven, with_agent(f"swap-{handler}", handler, script=WATCH)) as one:
        place = f"{PODS}/{one.uid}/volumes/kubernetes.io~csi/data/mount"
        late = []
        for number in range(1, 6):
            swapped = float(one.node.run("sh", "-c", SWAP, "swap", place, str(number)).out)
            late.append(1000 * (eventually(partial(saw, one, number), bool) - swapped))
        one.node.kill_orlopd()
        one.node.run("sh", "-c", SWAP, "swap", place, "6")
        eventually(lambda: one.inside("cat /agent/word"), lambda word: word == "6")
        print(f"{handler}: a swap is seen after {', '.join(f'{each:.0f}' for each in late)} ms")


def saw(one: Used, number: int) -> float:
    """When the pod said that it saw a number; 0 when it has not."""
    said = one.cluster.kubectl("logs", one.name, "--container=main", "--timestamps").out
    found = re.search(rf"^(\S+) saw {number}$", said, re.M)
    return datetime.fromisoformat(found[1]).timestamp() if found else 0.0


# PersistentVolumes


def claim(name: str, storage_class: str, **annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": str(SIZE)}},
        },
    }


def with_claim(name: str, handler: str) -> dict[str, Any]:
    whole = {"name": "data", "mountPath": "/data"}
    part = {"name": "data", "mountPath": "/sub", "subPath": "below"}
    source = {"persistentVolumeClaim": {"claimName": name}}
    return manifest(name, handler, source, container("main", whole), container("second", whole, part))


def kubelet(one: Used, path: str) -> str:
    return one.cluster.kubectl("get", "--raw", f"/api/v1/nodes/{one.node.name}/proxy/{path}").out


def statistics(one: Used) -> dict[str, Any]:
    """What the kubelet has measured of the pod's volume, {} if nothing yet."""
    pods = json.loads(kubelet(one, "stats/summary"))["pods"]
    volumes = [volume for pod in pods if pod["podRef"]["uid"] == one.uid for volume in pod.get("volume", ())]
    return next((volume for volume in volumes if volume["name"] == "data"), {})


def exported(one: Used) -> dict[str, float]:
    """The series of the kubelet about the pod's claim."""
    series = rf'^kubelet_volume_stats_(\w+){{[^}}]*persistentvolumeclaim="{one.name}"}} (\S+)$'
    found = re.findall(series, kubelet(one, "metrics"), re.M)
    return {name: float(value) for name, value in found}


def write_and_read(one: Used) -> None:
    """Both containers, both ways, in the whole volume and in a directory of it."""
    one.inside("echo one >/data/word && echo two >/data/below/word && sync")
    assert one.inside("cat /data/word /sub/word", "second").split() == ["one", "two"]
    one.inside("echo three >>/sub/word", "second")
    assert one.inside("cat /data/below/word").split() == ["two", "three"]
    assert one.inside("stat -c %u /data/word") == "1000"


def gone(cluster: Cluster, name: str) -> None:
    """Remove a claim, and with it its volume."""
    cluster.kubectl("delete", "pvc", name, timeout=LIMIT)

    def volumes() -> list[str]:
        found = cluster.json("get", "pv")["items"]
        return [one["metadata"]["name"] for one in found if one["spec"]["claimRef"]["name"] == name]

    eventually(volumes, lambda left: not left)


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_volume_by_the_driver_of_kubernetes_own_suite(handler: str, driven: Cluster) -> None:
    name = f"mock-{handler}"
    driven.apply(claim(name, "mock"))
    with used(driven, with_claim(name, handler)) as one:
        write_and_read(one)
        # fsGroup: of the root, and of what is made in it.
        assert one.inside("stat -c %g:%A /data /data/word").split() == ["2000:drwxrwsr-x", "2000:-rw-r--r--"]
        one.node.kill_orlopd()
        assert one.inside("cat /data/word") == "one"
        found = eventually(lambda: statistics(one), lambda found: found.get("capacityBytes", 0) > 0)
        assert found["capacityBytes"] == SIZE
        assert eventually(lambda: exported(one), bool)["capacity_bytes"] == SIZE
        print(f"{handler}: {exported(one)}")
    gone(driven, name)


@pytest.mark.parametrize("kind", ["local", "hostPath"])
@pytest.mark.parametrize("handler", HANDLERS)
def test_a_volume_by_local_path_provisioner(handler: str, kind: str, driven: Cluster) -> None:
    name = f"path-{kind.lower()}-{handler}"
    driven.apply(claim(name, "local-path", volumeType=kind))
    pod = with_claim(name, handler)
    with used(driven, pod) as one:
        write_and_read(one)
        if kind == "local":
            assert one.inside("stat -c %g /data /data/word").split() == ["2000"] * 2
            found = eventually(lambda: exported(one), bool)
            assert 0 < found["used_bytes"] < found["capacity_bytes"]
            print(f"{handler}: {found}")
        one.node.kill_orlopd()
        assert one.inside("cat /data/word") == "one"
        restart(driven, "deployment/local-path-provisioner", "local-path-storage")
    other = {"vm": "process", "process": "vm"}[handler]
    # The next pod has it as this one left it, whatever it is run by.
    with used(driven, with_claim(name, other)) as one:
        assert one.inside("cat /data/word /data/below/word").split() == ["one", "two", "three"]
    gone(driven, name)
    left = one.node.home / "local-path"
    eventually(lambda: [path.name for path in left.iterdir() if name in path.name], lambda left: not left)
