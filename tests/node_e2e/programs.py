"""The programs of Kubernetes that the node suite and the cluster need, built from its Go module.

``module/go.mod`` pins the release. Kubernetes' own go.mod refers to its staging directories, which its
module does not hold: each is replaced by the module that is published from it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance import tools

KUBERNETES = "1.36.3"
MODULE = Path(__file__).with_name("module")
STAMP = "k8s.io/component-base/version"
_MAJOR, _MINOR, _ = KUBERNETES.split(".")
_STAMPS = {"gitVersion": f"v{KUBERNETES}", "gitMajor": _MAJOR, "gitMinor": _MINOR}
FLAGS = [
    "-trimpath",
    "-ldflags",
    "-s -w " + " ".join(f"-X {STAMP}.{key}={to}" for key, to in _STAMPS.items()),
]

PACKAGES = {
    "agnhost": "k8s.io/kubernetes/test/images/agnhost",
    "ginkgo": "github.com/onsi/ginkgo/v2/ginkgo",
    **{
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in (
            "kubelet",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubectl",
        )
    },
}
SUITES = {"e2e_node.test": "k8s.io/kubernetes/test/e2e_node", "e2e.test": "k8s.io/kubernetes/test/e2e"}
COPIED = {"porter": "test/images/agnhost/porter"}
"""Directories of the module itself."""

NODE = ("kubelet", "agnhost", "ginkgo", "e2e_node.test", "porter")
"""What the node suite needs."""
CLUSTER = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubectl",
    "kubelet",
    "agnhost",
    "porter",
)
"""What a cluster needs; ``e2e.test`` and ``ginkgo`` are for the suite that judges one."""


@dataclass(frozen=True)
class Programs:
    """The directory of the built programs, and what names its content."""

    directory: Path
    key: str

    @property
    def suite(self) -> Path:
        """The node suite: specs, etcd and API server in one program."""
        return self.directory / "e2e_node.test"

    @property
    def ginkgo(self) -> Path:
        """What runs a suite in several processes."""
        return self.directory / "ginkgo"

    @property
    def agnhost(self) -> Path:
        """What most specs run in their containers."""
        return self.directory / "agnhost"

    @property
    def porter(self) -> Path:
        """The directory of the certificate and key that agnhost's image holds."""
        return self.directory / "porter"


def build(names: Sequence[str] = NODE) -> Programs:
    """The named programs, built if they are not in the cache: minutes for each, once for a release."""
    digest = hashlib.sha256(repr((FLAGS, PACKAGES, SUITES)).encode())
    for path in (MODULE / "go.mod", MODULE / "go.sum"):
        digest.update(path.read_bytes())
    key = digest.hexdigest()[:16]
    target = tools.cache_dir() / "node-e2e" / key
    missing = [name for name in names if not (target / name).exists()]
    if missing:
        tools.say(f"building {', '.join(missing)} of Kubernetes {KUBERNETES} (minutes, once)")
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as scratch:
            # Go wants to write beside go.mod.
            module = Path(shutil.copytree(MODULE, Path(scratch) / "module"))
            for name in missing:
                tools.place(_make(name, module), target / name)
    return Programs(target, key)


def _make(name: str, module: Path) -> Path:
    """Build or copy one of them; where it is."""
    go, out = tools.find_go(), module.parent / "out" / name
    out.parent.mkdir(exist_ok=True)
    # What the environment says of flags must not reach the build: -mod=vendor would fail.
    env = {"GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    if name in PACKAGES:
        tools.run([go, "build", *FLAGS, "-o", out, PACKAGES[name]], cwd=module, env=env)
    elif name in SUITES:
        tools.run([go, "test", "-vet=off", "-c", *FLAGS, "-o", out, SUITES[name]], cwd=module, env=env)
    else:
        where = tools.run([go, "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"], cwd=module, env=env)
        shutil.copytree(Path(where.strip()) / COPIED[name], out)
        for path in (out, *out.iterdir()):
            path.chmod(path.stat().st_mode | 0o200)
    return out


if __name__ == "__main__":
    print(os.fspath(build().directory))
