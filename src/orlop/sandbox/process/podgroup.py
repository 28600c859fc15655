"""The control group that a pod has to itself, so that the kernel counts for the pod as a whole.

What a group has counted outlives the containers in it and the daemon beside it. A kubelet makes such a
group for each pod and names it after the pod; below any other parent Orlop makes one, except with
systemd, which would forget the figures of a slice when its last container ends.
"""

from __future__ import annotations

from orlop.host import cgroups
from orlop.sandbox.spec import PodSpec

_PREFIX = "orlop-"


def path_of(spec: PodSpec, default_parent: str, *, systemd: bool) -> str:
    """The group that the pod's containers go below: the parent as it was given, or one of the pod's own."""
    parent = spec.cgroup_parent or default_parent
    if systemd or alone(parent, spec):
        return parent
    return f"{cgroups.expand(parent).rstrip('/')}/{_own_name(spec.id)}"


def alone(path: str, spec: PodSpec) -> bool:
    """Whether a group, by its name, holds this pod and no other."""
    name = path.rstrip("/").rpartition("/")[2]
    named = f"pod{spec.uid}"
    return bool(
        name in (spec.id, _own_name(spec.id))
        or (spec.uid and (name == named or name.endswith(f"-{named.replace('-', '_')}.slice")))
    )


def made_by_us(path: str, pod_id: str) -> bool:
    """Whether a pod's group is Orlop's to remove."""
    return path.rpartition("/")[2] in (pod_id, _own_name(pod_id))


def _own_name(pod_id: str) -> str:
    return f"{_PREFIX}{pod_id[:32]}"
