"""What is kept of a container that came through the door: all that its caller said when it was made.

It is in the engine's own record, as an annotation; so it is there after a restart, and goes with the
container.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from orlop.bundle import document
from orlop.bundle.roles import Role, role
from orlop.host import cgroups
from orlop.oci import companion as companions
from orlop.oci import questions
from orlop.oci.companion import Companion
from orlop.pods.records import ContainerRecord
from orlop.value import Value

KEY = "orlop.oci/bundle"
_MADE_BY = "io.container.manager"


class Bundle(Value, frozen=True):
    """What a caller said when it made a container.

    ``sandbox`` is the id of the pod's sandbox that the caller named, and ``role`` what this one is in that
    pod. ``network`` is which network namespace the VM has taken over, "" where an older daemon made it.
    """

    root: str
    id: str
    directory: str
    rootfs: str
    version: str
    created: str
    companion: Companion
    tty: bool = False
    cgroup: str = ""
    after_start: tuple[document.OciHook, ...] = ()
    after_end: tuple[document.OciHook, ...] = ()
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    role: Role = Role.ALONE
    sandbox: str = ""
    network: str = ""

    def state(self, status: str) -> dict[str, Any]:
        """The state as the specification has it."""
        return {
            "ociVersion": self.version,
            "id": self.id,
            "pid": 0 if status == "stopped" else self.companion.pid,
            "status": status,
            "bundle": self.directory,
            "annotations": self.annotations,
        }

    @property
    def forwarded(self) -> bool:
        """Whether its caller forwards ports of its pod: CRI-O does, podman publishes them."""
        return self.role is not Role.ALONE and self.annotations.get(_MADE_BY) != "libpod"

    @property
    def vm_group(self) -> str:
        """The control group that a VM made for it is below, "" for none.

        That of a pod is where its limits are, beside the groups of the containers: one of those can go
        before the others.
        """
        if self.role is Role.ALONE:
            return self.cgroup
        parent = os.path.dirname(self.cgroup)  # noqa: PTH120 - a pure path of text
        return parent if parent != "/" else ""


def bundle_of(record: ContainerRecord) -> Bundle:
    """What is kept of a container."""
    return msgspec.json.decode(record.annotations[KEY], type=Bundle)


def described(asked: questions.ToCreate, config: document.OciConfig) -> Bundle:
    """What is to be kept of one. Raises FailedPrecondition, InvalidArgument."""
    given, hooks = asked.stand_in, config.hooks or document.OciHooks()
    assert config.root is not None and config.process is not None
    companion = companions.of(given.pid, given.since, stdin=given.stdin)
    what, sandbox = role(config)
    return Bundle(
        root=asked.root,
        id=asked.id,
        directory=asked.bundle,
        rootfs=os.path.normpath(os.path.join(asked.bundle, config.root.path)),  # noqa: PTH118
        version=config.oci_version,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        companion=companion,
        tty=config.process.terminal,
        cgroup=_cgroup(config, systemd=asked.systemd_cgroup),
        after_start=hooks.poststart or (),
        after_end=hooks.poststop or (),
        annotations=config.annotations or {},
        role=what,
        sandbox=sandbox,
        network=companion.network(),
    )


def _cgroup(config: document.OciConfig, *, systemd: bool) -> str:
    """The path of its control group, "" for none. Raises InvalidArgument."""
    path = config.linux.cgroups_path if config.linux else ""
    if not systemd or path.count(":") != 2:
        return cgroups.expand(path) if path else ""
    parent, prefix, name = path.split(":")
    return cgroups.expand(f"{cgroups.expand(parent or 'system.slice')}/{prefix}-{name}.scope")
