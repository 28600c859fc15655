"""A container in the words of the OCI runtime specification, for people and their tools.

What a sandbox runs from such a document shows the document itself; for the others this says the same
from the record: what was decided for the container, not how its sandbox does it.
"""

from __future__ import annotations

from typing import Any

from orlop.images import model
from orlop.pods.records import ContainerRecord
from orlop.sandbox.spec import ContainerSpec, Mount, Resources

_VERSION = "1.0.2"


def runtime_spec(record: ContainerRecord) -> dict[str, Any]:
    """The document (opencontainers/runtime-spec, config.md), without what the record does not know."""
    spec, security = record.spec, record.spec.security
    return {
        "ociVersion": _VERSION,
        "hostname": spec.hostname,
        "process": _process(record),
        "root": {"readonly": security.read_only_root},
        "mounts": [_mount(item) for item in spec.mounts],
        "annotations": dict(spec.annotations),
        "linux": {
            "resources": _resources(spec.resources),
            "maskedPaths": list(security.masked_paths),
            "readonlyPaths": list(security.read_only_paths),
        },
    }


def health(record: ContainerRecord) -> dict[str, Any]:
    """How a container is and how that is found out; empty for one that nobody checks."""
    if record.health_check is None or record.health is None:
        return {}
    state = record.health
    return {
        "health": {
            "check": model.health(record.health_check),
            "status": state.status,
            "failingStreak": state.failures,
            "log": [
                {
                    "start": one.started_at,
                    "end": one.finished_at,
                    "exitCode": one.exit_code,
                    "output": one.output,
                }
                for one in state.results
            ],
        }
    }


def _process(record: ContainerRecord) -> dict[str, Any]:
    spec, user = record.spec, record.user
    capabilities = [f"CAP_{name}" for name in spec.security.capabilities]
    found: dict[str, Any] = {
        "terminal": spec.tty,
        "args": list(spec.args),
        "env": _environment(spec),
        "cwd": spec.cwd,
        "noNewPrivileges": spec.security.no_new_privs,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "oomScoreAdj": spec.resources.oom_score_adj,
    }
    if user is not None:
        found["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)}
    return found


def _environment(spec: ContainerSpec) -> list[str]:
    return [f"{name}={value.decode(errors='replace')}" for name, value in spec.env]


def _mount(mount: Mount) -> dict[str, Any]:
    if mount.tmpfs is not None:
        options = [f"mode={mount.tmpfs.mode:o}", "ro" if mount.read_only else "rw"]
        return {"destination": mount.container_path, "type": "tmpfs", "source": "tmpfs", "options": options}
    options = ["rbind", mount.propagation.value, "ro" if mount.read_only else "rw"]
    source = mount.host_path if mount.image is None else mount.image.reference or mount.image.image_id
    return {"destination": mount.container_path, "type": "bind", "source": source, "options": options}


def _resources(limits: Resources) -> dict[str, Any]:
    cpu = {
        "shares": limits.cpu_shares,
        "quota": limits.cpu_quota,
        "period": limits.cpu_period,
        "cpus": limits.cpuset_cpus,
        "mems": limits.cpuset_mems,
    }
    memory = {"limit": limits.memory_limit, "swap": limits.swap_limit}
    return {
        "cpu": {name: value for name, value in cpu.items() if value},
        "memory": {name: value for name, value in memory.items() if value},
    }
