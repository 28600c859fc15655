"""What there is of the OCI runtime specification, in the words of its features document. Imports little:
commands that start and end with each call show it."""

from __future__ import annotations

from typing import Any

from orlop.linux.capabilities import CAPABILITIES

SPECIFICATION = "1.2.0"
"""The newest version of the OCI runtime specification that is understood."""

FEATURES: dict[str, Any] = {
    "ociVersionMin": "1.0.0",
    "ociVersionMax": SPECIFICATION,
    "hooks": ["prestart", "createRuntime", "poststart", "poststop"],
    "mountOptions": ["bind", "nodev", "noexec", "nosuid", "rbind", "ro", "rprivate", "rro", "rslave", "rw"],
    "linux": {
        "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
        "capabilities": [f"CAP_{name}" for name in CAPABILITIES],
        "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": False},
        "seccomp": {"enabled": True},
        "apparmor": {"enabled": False},
        "selinux": {"enabled": False},
        "intelRdt": {"enabled": False},
        "mountExtensions": {"idmap": {"enabled": False}},
    },
}
