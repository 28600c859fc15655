"""A claim from its first pod to its end: mounted, grown, kept, restored and copied, node by node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orlop.linux import loop
from tests.cluster.room import Cluster, ClusterNode, eventually
from tests.conformance.images import E2E
from tests.e2e.test_volumes_host import may_resize
from tests.patience import PATIENCE

MIB = 1 << 20
SIZE, GROWN = 64, 128
"""MiB of a claim."""
LIMIT = 180.0 * PATIENCE
HOSTNAME = "kubernetes.io/hostname"


@dataclass(frozen=True)
class Kind:
    """A way to have a volume. ``lent``: its disk is its user's alone, so whoever copies it has to wait."""

    handler: str
    storage_class: str = "orlop"
    mode: str = "Filesystem"
    lent: bool = False

    @property
    def grows_in_use(self) -> bool:
        """Whether a pod sees at once that its volume has grown."""
        return self.mode == "Block" or (not self.lent and may_resize())


KINDS = {
    "process": Kind("process"),
    "vm": Kind("vm"),
    "guest": Kind("vm", "orlop-vm", lent=True),
    "process-block": Kind("process", mode="Block", lent=True),
    "vm-block": Kind("vm", mode="Block", lent=True),
}


def claim(
    name: str, kind: Kind, size: str = f"{SIZE}Mi", source: Mapping[str, str] | None = None
) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": kind.mode,
        "storageClassName": kind.storage_class,
        "resources": {"requests": {"storage": size}},
    }
    if source is not None:
        spec["dataSource"] = dict(source)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": spec,
    }


def pod(name: str, kind: Kind, node: str = "", *, of: str = "") -> dict[str, Any]:
    """A pod that waits, with the claim of its own name or ``of``; not as root where it has a file system."""
    main: dict[str, Any] = {"name": "main", "image": f"{E2E}/agnhost:2.63.0", "args": ["pause"]}
    if kind.mode == "Block":
        main["volumeDevices"] = [{"name": "data", "devicePath": "/dev/data"}]
        security: dict[str, Any] = {}
    else:
        main["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        security = {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "runtimeClassName": kind.handler,
            "nodeSelector": {HOSTNAME: node} if node else {},
            "securityContext": security,
            "terminationGracePeriodSeconds": 1,
            "containers": [main],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": of or name}}],
        },
    }


def snapshot(name: str, of: str) -> dict[str, Any]:
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": "orlop", "source": {"persistentVolumeClaimName": of}},
    }


def of_snapshot(name: str) -> dict[str, str]:
    return {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name}


def of_claim(name: str) -> dict[str, str]:
    return {"kind": "PersistentVolumeClaim", "name": name}


class Claims:
    """What the tests do with claims and pods of one kind."""

    def __init__(self, cluster: Cluster, kind: Kind) -> None:
        self.cluster, self.kind = cluster, kind

    def start(self, name: str, node: str = "", *, of: str = "") -> ClusterNode:
        """A pod that runs; the node that it is on."""
        self.cluster.apply(pod(name, self.kind, node, of=of))
        self.cluster.wait(f"pod/{name}", "condition=Ready")
        found = self.cluster.json("get", "pod", name)["spec"]["nodeName"]
        return next(one for one in self.cluster.nodes if one.name == found)

    def end(self, name: str, disk: Path) -> None:
        """Remove a volume's last pod, and wait until nobody has the disk any more."""
        self.cluster.kubectl("delete", "pod", name)
        eventually(lambda: loop.devices_of(str(disk)), lambda devices: not devices)

    def inside(self, name: str, script: str) -> str:
        return self.cluster.kubectl("exec", name, "--", "sh", "-c", script).out.strip()

    def write(self, name: str, word: str) -> None:
        block = f"echo {word} | dd of=/dev/data bs=512 conv=sync,fsync 2>/dev/null"
        self.inside(name, block if self.kind.mode == "Block" else f"echo {word} >/data/word && sync")

    def read(self, name: str) -> str:
        block = "dd if=/dev/data bs=512 count=1 2>/dev/null | head -n 1"
        return self.inside(name, block if self.kind.mode == "Block" else "cat /data/word")

    def size(self, name: str) -> int:
        """MiB that the pod sees, of a file system rather less than its disk has."""
        block, mounted = "blockdev --getsize64 /dev/data", "df -Pk /data | tail -n 1 | awk '{ print $2 }'"
        if self.kind.mode == "Block":
            return int(self.inside(name, block)) // MIB
        return int(self.inside(name, mounted)) // 1024

    def capacity(self, name: str) -> str:
        found: str = self.cluster.json("get", "pvc", name)["status"]["capacity"]["storage"]
        return found

    def events(self, what: str) -> str:
        said = self.cluster.json("get", "events", f"--field-selector=involvedObject.name={what}")
        return "\n".join(one["message"] for one in said["items"])

    def handle(self, name: str) -> str:
        """The driver's id of a claim's volume."""
        volume = self.cluster.json("get", "pvc", name)["spec"]["volumeName"]
        found: str = self.cluster.json("get", "pv", volume)["spec"]["csi"]["volumeHandle"]
        return found


def disks(node: ClusterNode, kind: str = "volumes") -> dict[str, Path]:
    """The disks of a node's volumes or snapshots, by id."""
    found = node.home.glob(f"n*/root/volumes/{kind}/*")
    return {place.name: place / "data/.orlop-volume" for place in found}


@contextmanager
def cleaned(cluster: Cluster) -> Iterator[None]:
    """In the end nothing is left of a test, in the cluster and on its nodes."""
    everything = ("delete", "pod,volumesnapshot,pvc", "--all")
    try:
        yield
    except BaseException:
        print(cluster.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False).out)
        cluster.kubectl(*everything, check=False, timeout=LIMIT)
        raise
    cluster.kubectl(*everything, timeout=LIMIT)
    eventually(lambda: cluster.json("get", "pv,volumesnapshotcontent")["items"], lambda left: not left)
    for node in cluster.nodes:
        assert not disks(node) and not disks(node, "snapshots")


@pytest.mark.parametrize("name", KINDS)
def test_a_claims_life(name: str, storing: Cluster) -> None:
    kind = KINDS[name]
    one = Claims(storing, kind)
    with cleaned(storing):
        storing.apply(claim("first", kind))
        node = one.start("first")
        assert [*disks(node)] == [one.handle("first")]
        one.write("first", "one")
        assert SIZE * 0.7 < one.size("first") <= SIZE

        wish = f'{{"spec": {{"resources": {{"requests": {{"storage": "{GROWN}Mi"}}}}}}}}'
        storing.kubectl("patch", "pvc", "first", "--patch", wish)
        disk = disks(node)[one.handle("first")]
        eventually(lambda: disk.stat().st_size, lambda size: size == GROWN * MIB)
        if not kind.grows_in_use:
            assert one.capacity("first") == f"{SIZE}Mi"
            one.end("first", disk)
            assert one.start("first") == node
        eventually(lambda: one.size("first"), lambda size: size > GROWN * 0.7)
        eventually(lambda: one.capacity("first"), lambda size: size == f"{GROWN}Mi")
        assert one.read("first") == "one"

        if kind.lent:
            one.end("first", disk)
        storing.apply(snapshot("kept", "first"))
        storing.wait("volumesnapshot/kept", "jsonpath={.status.readyToUse}=true")
        if kind.lent:
            one.start("first")
        one.write("first", "two")
        if kind.lent:
            one.end("first", disk)

        storing.apply(claim("restored", kind, f"{GROWN}Mi", of_snapshot("kept")))
        storing.apply(claim("copied", kind, f"{GROWN}Mi", of_claim("first")))
        assert one.start("restored", node.name) == one.start("copied", node.name) == node
        assert (one.read("restored"), one.read("copied")) == ("one", "two")


def test_a_volume_is_where_its_first_pod_is(storing: Cluster) -> None:
    one = Claims(storing, KINDS["process"])
    with cleaned(storing):
        for node in storing.nodes:
            storing.apply(claim(node.name, one.kind))
            assert one.start(node.name, node.name) is node
            one.write(node.name, node.name)
        for node in storing.nodes:
            assert [*disks(node)] == [one.handle(node.name)]
            # Wherever else there is room: it has to go there, and shares it with the other pod.
            assert one.start(f"second-{node.name}", of=node.name) is node
            assert one.read(f"second-{node.name}") == node.name
        first, second = storing.nodes
        storing.apply(pod("lost", one.kind, second.name, of=first.name))
        eventually(lambda: one.events("lost"), lambda said: "PersistentVolume's node affinity" in said)


def test_a_copy_goes_to_the_node_of_its_source(storing: Cluster) -> None:
    """Also where the scheduler chose another one first."""
    one = Claims(storing, KINDS["process"])
    first, second = storing.nodes
    with cleaned(storing):
        storing.apply(claim("source", one.kind))
        one.start("source", first.name)
        one.write("source", "one")
        storing.apply(snapshot("kept", "source"))
        storing.wait("volumesnapshot/kept", "jsonpath={.status.readyToUse}=true")
        storing.kubectl("cordon", first.name)
        try:
            storing.apply(claim("restored", one.kind, source=of_snapshot("kept")))
            storing.apply(pod("restored", one.kind))
            eventually(lambda: one.events("restored"), lambda said: "on the node of its source" in said)
            storing.kubectl("cordon", second.name)
            storing.kubectl("uncordon", first.name)
            assert one.start("restored") is first
        finally:
            storing.kubectl("uncordon", first.name, second.name)
        assert one.read("restored") == "one"


def test_a_claim_that_no_node_has_room_for_waits(storing: Cluster) -> None:
    one = Claims(storing, KINDS["process"])
    with cleaned(storing):
        storing.apply(claim("large", one.kind, "15Ti"), pod("large", one.kind))
        eventually(lambda: one.events("large"), lambda said: "enough free storage" in said)


@pytest.mark.parametrize("name", ["process", "guest"])
def test_pods_keep_their_volumes_while_the_driver_is_killed(name: str, storing: Cluster) -> None:
    one = Claims(storing, KINDS[name])
    with cleaned(storing):
        storing.apply(claim("before", one.kind))
        node = one.start("before")
        one.write("before", "one")
        node.kill_orlopd()
        assert one.read("before") == "one"
        storing.apply(claim("after", one.kind))
        assert one.start("after", node.name) is node
        one.write("before", "two")
        assert one.read("before") == "two"
