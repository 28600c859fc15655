"""The drivers, built from their Go modules, in images of the names in their own manifests.

Each directory here with a ``go.mod`` pins one author's: they want different versions of what they have in
common. The registrar of kubernetes-csi is in no module that can be had: ``kubernetes/registrar`` stands in.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from orlop.cli.demo.imagewriter import LayerWriter, Pusher, WrittenImage
from tests.conformance import images
from tests.conformance.images import PATH
from tests.csi_life import pinned, sidecars

HERE = Path(__file__).parent
OWN = HERE / "manifests.yaml"
CALICO = "github.com/projectcalico/calico"
RANCHER = "github.com/rancher/local-path-provisioner"
REGISTRY = "registry.k8s.io/others"
USER = f"{REGISTRY}/user:1"
"""What the pods run that use volumes: a shell, and ``asker``."""

PROGRAMS = {
    "calico": {
        "csi": f"{CALICO}/pod2daemon/csidriver",
        "nodeagent": f"{CALICO}/pod2daemon/nodeagent",
        "asker": "./asker",
    },
    "kubernetes": {"mock": "./mock", "node-driver-registrar": "./registrar"},
    "localpath": {"local-path-provisioner": RANCHER},
}
"""By directory here: the packages by the names of their images."""

MANIFESTS = {
    "calico": (CALICO, "manifests/csi-driver.yaml"),
    "localpath": (RANCHER, "deploy/local-path-storage.yaml"),
}
"""By directory here: the module of the authors' manifest, and where it is in that."""

_MANIFEST = "manifest.yaml"


class Built:
    """The programs and their authors' manifests, built if they are not in the cache: minutes, once."""

    def __init__(self) -> None:
        self._places = {
            name: pinned.build(f"csi-{name}", HERE / name, packages, partial(_manifest, name))
            for name, packages in PROGRAMS.items()
        }
        self.key = "".join(place.name for place in self._places.values())

    def programs(self) -> dict[str, bytes]:
        """What each is made of, by the name of its image."""
        return {
            program: (self._places[name] / program).read_bytes()
            for name, packages in PROGRAMS.items()
            for program in packages
        }

    def manifest(self, name: str) -> str:
        """The authors' manifest, but for the images: they are those of :func:`fill`."""
        named = re.compile(r"image: (?:\S+/)?([\w-]+)(?::\S+)?$", re.M)
        return named.sub(rf"image: {REGISTRY}/\1:1", (self._places[name] / _MANIFEST).read_text())


def _manifest(name: str, made: Path, source: Callable[[str], Path]) -> None:
    if name in MANIFESTS:
        module, path = MANIFESTS[name]
        shutil.copyfile(source(module) / path, made / _MANIFEST)


def fill(built: Built, sides: Path, address: str) -> None:
    """Push the drivers, the provisioner and what pods run to the registry at ``address``."""
    push, base = Pusher(address).push, images.base_layer()
    shell = {"Env": [PATH], "Cmd": ["sh"]}
    push(f"{REGISTRY}/busybox", ["1"], WrittenImage((base,), shell))
    for name, program in built.programs().items():
        layer = LayerWriter()
        layer.file(f"usr/bin/{name}", program, 0o755)
        layers = (base, layer.finish())
        push(
            f"{REGISTRY}/{name}",
            ["1"],
            WrittenImage(layers, shell | {"Entrypoint": [f"/usr/bin/{name}"], "Cmd": []}),
        )
        if name == "asker":
            push(f"{REGISTRY}/user", ["1"], WrittenImage(layers, shell))
    sidecars.push_program(push, sides, "csi-provisioner")


def storage(built: Built, sides: Path) -> Path:
    """A registry's storage with these images in it, made once for each version of these files."""
    digest = hashlib.sha256((built.key + sides.name).encode())
    for file in (Path(__file__), Path(images.__file__), Path(sidecars.__file__)):
        digest.update(file.read_bytes())
    return images.stored("csi-others-registry", digest.hexdigest()[:16], partial(fill, built, sides))
