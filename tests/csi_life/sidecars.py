"""The sidecars of kubernetes-csi, built from their Go modules, and images of the names in our manifests.

``module/go.mod`` pins them, and puts Kubernetes' own modules at the release of the tests' cluster.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from orlop.cli.demo.imagewriter import LayerWriter, Pusher, WrittenImage
from tests.cluster import images as cluster_images
from tests.conformance import images
from tests.conformance.images import E2E
from tests.csi_life import pinned
from tests.node_e2e import images as node_images
from tests.node_e2e import programs

MANIFESTS = Path(__file__).resolve().parents[2] / "packaging/kubernetes"
MODULE = Path(__file__).with_name("module")
DEFINITIONS = "definitions"
"""A directory beside the programs: the resource definitions of snapshots."""

_HOME = "github.com/kubernetes-csi"
_CLIENT = f"{_HOME}/external-snapshotter/client/v8"
MODULES = {
    "csi-provisioner": f"{_HOME}/external-provisioner/v6",
    "csi-resizer": f"{_HOME}/external-resizer/v2",
    "csi-snapshotter": f"{_HOME}/external-snapshotter/v8",
    "snapshot-controller": f"{_HOME}/external-snapshotter/v8",
}
"""By the name of the program, which is in ``cmd`` of its module, and of its image."""


def version(program: str) -> str:
    """The version of a program that ``module/go.mod`` pins, as its image is tagged."""
    return pinned.version(MODULE, MODULES[program])


def build() -> Path:
    """The directory of the programs and definitions, built if they are not in the cache: minutes, once."""
    packages = {name: f"{where}/cmd/{name}" for name, where in MODULES.items()}
    return pinned.build("csi-sidecars", MODULE, packages, _definitions)


def _definitions(made: Path, source: Callable[[str], Path]) -> None:
    (made / DEFINITIONS).mkdir()
    for file in (source(_CLIENT) / "config/crd").glob("snapshot.storage.k8s.io_*.yaml"):
        shutil.copyfile(file, made / DEFINITIONS / file.name)


def push_program(push: Callable[..., object], built: Path, name: str) -> None:
    """Push a sidecar under the name in our manifests."""
    layer = LayerWriter()
    layer.file(name, (built / name).read_bytes(), 0o755)
    image = WrittenImage((layer.finish(),), {"Entrypoint": [f"/{name}"]})
    push(f"registry.k8s.io/sig-storage/{name}", [version(name)], image)


def fill(built: Path, address: str) -> None:
    """Push the sidecars and what pods run to the registry at ``address``."""
    push = Pusher(address).push
    push(f"{E2E}/agnhost", ["2.63.0"], node_images.agnhost_image(programs.build(programs.CLUSTER)))
    _push_all(built, address)


def _push_all(built: Path, address: str) -> None:
    for name in MODULES:
        push_program(Pusher(address).push, built, name)


def storage(built: Path) -> Path:
    """A registry's storage with these images in it, made once for each version of these files."""
    digest = hashlib.sha256((built.name + node_images.key(programs.build(programs.CLUSTER))).encode())
    digest.update(Path(__file__).read_bytes())
    return images.stored("csi-registry", digest.hexdigest()[:16], partial(fill, built))


def suite_storage(built: Path, suite: programs.Programs) -> Path:
    """The same with all images of the cluster's specs."""

    def fill_all(address: str) -> None:
        cluster_images.fill(suite, address)
        _push_all(built, address)

    digest = hashlib.sha256((built.name + cluster_images.key(suite)).encode())
    digest.update(Path(__file__).read_bytes())
    return images.stored("csi-suite-registry", digest.hexdigest()[:16], fill_all)
