"""The programs of Kubernetes that the node suite needs, built from its Go module.

``module/go.mod`` pins the release. Kubernetes' own go.mod refers to its staging directories, which its
module does not hold: each is replaced by the module that is published from it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.conformance import tools

KUBERNETES = "1.36.3"
MODULE = Path(__file__).with_name("module")
STAMP = "k8s.io/component-base/version"

PACKAGES = {
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
    "agnhost": "k8s.io/kubernetes/test/images/agnhost",
    "ginkgo": "github.com/onsi/ginkgo/v2/ginkgo",
}
SUITE = "k8s.io/kubernetes/test/e2e_node"


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
        """What runs the suite in several processes."""
        return self.directory / "ginkgo"

    @property
    def agnhost(self) -> Path:
        """What most specs run in their containers."""
        return self.directory / "agnhost"

    @property
    def porter(self) -> Path:
        """The directory of the certificate and key that agnhost's image holds."""
        return self.directory / "porter"


def build() -> Programs:
    """The programs, built if they are not in the cache: ten minutes of two cores, once for a release."""
    digest = hashlib.sha256()
    for path in (MODULE / "go.mod", MODULE / "go.sum", Path(__file__)):
        digest.update(path.read_bytes())
    key = digest.hexdigest()[:16]
    target = tools.cache_dir() / "node-e2e" / key
    if target.exists():
        return Programs(target, key)
    go = tools.find_go()
    tools.say(f"building kubelet and node suite {KUBERNETES} (ten minutes, once)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as scratch_name:
        scratch = Path(scratch_name)
        module, out = scratch / "module", scratch / "out"
        shutil.copytree(MODULE, module)
        out.mkdir()
        # What the environment says of flags must not reach the build: -mod=vendor would fail.
        env = {"GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
        major, minor, _ = KUBERNETES.split(".")
        stamps = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor}
        flags = "-s -w " + " ".join(f"-X {STAMP}.{name}={value}" for name, value in stamps.items())
        common = ["-trimpath", "-ldflags", flags]
        for name, package in PACKAGES.items():
            tools.run([go, "build", *common, "-o", out / name, package], cwd=module, env=env)
        tools.run(
            [go, "test", "-vet=off", "-c", *common, "-o", out / "e2e_node.test", SUITE], cwd=module, env=env
        )
        where = tools.run([go, "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"], cwd=module, env=env)
        shutil.copytree(Path(where.strip()) / "test/images/agnhost/porter", out / "porter")
        for path in (out / "porter", *(out / "porter").iterdir()):
            path.chmod(path.stat().st_mode | 0o200)
        try:
            out.rename(target)
        except OSError:
            # Another run was quicker.
            if not target.exists():
                raise
    return Programs(target, key)


if __name__ == "__main__":
    print(os.fspath(build().directory))
