"""How a node's kubelet is told which runtime to use, and what it uses now.

A drop-in of its unit adds a file of environment after those that kubeadm's unit reads. In that file the flag
stands at the end of ``KUBELET_EXTRA_ARGS``, which is the end of the command line: it wins over kubeadm's own
``kubeadm-flags.env`` and over the configuration file, and neither of them is changed.
"""

from __future__ import annotations

import re

import msgspec

from orlop.cli.node.host import NodeHost
from orlop.config import Config

DROP_IN = "/etc/systemd/system/kubelet.service.d/90-orlop.conf"
ENVIRONMENT = "/etc/orlop/kubelet.env"
CONFIGURATION = "/var/lib/kubelet/config.yaml"
_INSTANCE = "/var/lib/kubelet/instance-config.yaml"
_FLAGS = "/var/lib/kubelet/kubeadm-flags.env"
_DEFAULTS = "/etc/default/kubelet"
_USUAL = "unix:///run/containerd/containerd.sock"

_ENDPOINT = re.compile(r"--container-runtime-endpoint[= ]([^\s\"']+)")
_EXTRA = re.compile(r"^KUBELET_EXTRA_ARGS=(.*)$", re.M)

_UNIT = f"""# Written by `orlop node install`; `orlop node rollback` removes it.
[Unit]
Wants=orlopd.service
After=orlopd.service

[Service]
EnvironmentFile={ENVIRONMENT}
"""


def cgroup_driver(host: NodeHost) -> str:
    """The driver that the kubelet is configured with; its own default where it says nothing."""
    return str(_yaml(host.read(CONFIGURATION)).get("cgroupDriver", "cgroupfs"))


def endpoint(host: NodeHost) -> str:
    """The runtime that the kubelet uses without us."""
    for name in (_DEFAULTS, _FLAGS):
        if found := _ENDPOINT.search(host.read(name)):
            return found[1]
    for name in (_INSTANCE, CONFIGURATION):
        if found_in_file := _yaml(host.read(name)).get("containerRuntimeEndpoint"):
            return str(found_in_file)
    return _USUAL


def use(host: NodeHost) -> None:
    """Let it use Orlop from its next start on. Idempotent."""
    given = _EXTRA.search(host.read(_DEFAULTS))
    extra = given[1].strip().strip("\"'") if given else ""
    flags = f"{extra} --container-runtime-endpoint=unix://{Config().socket}".strip()
    host.write(ENVIRONMENT, f'KUBELET_EXTRA_ARGS="{flags}"\n')
    host.write(DROP_IN, _UNIT)


def used(host: NodeHost) -> bool:
    """Whether it is told to use Orlop."""
    return host.path(DROP_IN).exists()


def forget(host: NodeHost) -> None:
    """Let it use what it used before. Idempotent."""
    host.remove(DROP_IN)
    host.remove(ENVIRONMENT)


def _yaml(text: str) -> dict[str, object]:
    found = msgspec.yaml.decode(text) if text else None
    return found if isinstance(found, dict) else {}
