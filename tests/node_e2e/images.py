"""The images that Kubernetes' node suite pulls, made on this machine.

Their names and tags are those of ``test/utils/image/manifest.go`` of the release in ``module/go.mod``.
They stand beside critest's in one registry. An image that a spec wants and that is not here is in the
list of exceptions.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from pathlib import Path

from orlop.cli.demo.imagewriter import LayerContent, LayerWriter, Pusher, WrittenBlob, WrittenImage
from tests.conformance import images, tools
from tests.conformance.images import E2E, PATH
from tests.node_e2e.programs import Programs

PAUSE = "registry.k8s.io/pause:3.10.2"
SHELL = {"Env": [PATH], "Cmd": ["sh"]}


def with_dependencies(*packages: str) -> Path:
    """A root with packages of Debian and all that they depend on."""
    options = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    said = tools.run(
        ["apt-cache", "depends", "--recurse", *(f"--no-{option}" for option in options), *packages]
    )
    return tools.debian_packages(set(re.findall(r"^[a-z0-9]\S*$", said, re.M)))


def shell_layer() -> LayerContent:
    """Debian's curl and bash, which specs run in agnhost's image."""
    root = with_dependencies("curl", "bash")
    bash = "bin/bash" if (root / "bin/bash").exists() else "usr/bin/bash"
    layer = LayerWriter()
    layer.tree(root, ["usr/bin/curl"])
    layer.file("bin/bash", (root / bash).read_bytes(), 0o755)
    images.libraries(layer, root, "usr/bin/curl", bash)
    return layer.finish()


def program_layer(package: str, program: str, place: str) -> LayerContent:
    """A program of Debian's at its place in the layer, with the libraries it needs."""
    root = tools.debian_packages([package, "libc6"])
    layer = LayerWriter()
    layer.file(place, (root / program).read_bytes(), 0o755)
    images.libraries(layer, root, program)
    return layer.finish()


def hostname_layer() -> LayerContent:
    """Debian's hostname, which asks the C library's resolver for a full name."""
    return program_layer("hostname", "bin/hostname", "bin/hostname")


def _store(layer: LayerWriter, directory: str, blob: WrittenBlob) -> None:
    """Put a blob where agnhost's own registry server looks for it."""
    algorithm, digest = blob.digest.split(":")
    layer.file(f"{directory}/{algorithm}/{digest[:2]}/{digest}/data", blob.data)


def agnhost_layer(programs: Programs, pause: WrittenImage) -> LayerContent:
    """agnhost with the files that its subcommands serve; one is a registry that holds ``pause``."""
    layer = LayerWriter()
    layer.file("agnhost", programs.agnhost.read_bytes(), 0o755)
    layer.symbolic_link("agnhost-2", "agnhost")
    layer.directory("uploads")
    for name in ("localhost.crt", "localhost.key"):
        layer.file(name, (programs.porter / name).read_bytes())
    user = "user-defined-in-image"
    layer.file("etc/passwd", images.PASSWD + f"{user}:x:1000:1000:Linux User:/home/{user}:/bin/sh\n")
    layer.file("etc/group", images.GROUP + f"{user}:x:1000:\ngroup-defined-in-image:x:50000:{user}\n")
    manifest, top = pause.manifest(), "var/registry/pause"
    layer.file(f"{top}/manifests/testing", manifest.digest + "\n")
    _store(layer, f"{top}/manifests", manifest)
    for blob in (pause.config(), *(one.blob for one in pause.layers)):
        _store(layer, f"{top}/blobs", blob)
    return layer.finish()


def pause_image() -> WrittenImage:
    """What holds a pod's namespaces."""
    return WrittenImage((images.pause_layer(),), {"Entrypoint": ["/pause"], "User": "65535:65535"})


def agnhost_image(programs: Programs) -> WrittenImage:
    """agnhost on busybox, with curl and bash."""
    layers = (images.base_layer(), shell_layer(), agnhost_layer(programs, pause_image()))
    return WrittenImage(layers, {"Env": [PATH], "Entrypoint": ["/agnhost"], "Cmd": ["pause"]})


def nonewprivs_layer() -> LayerContent:
    """A set-uid root program that prints its effective uid, in the search path."""
    layer = LayerWriter()
    layer.file("usr/local/bin/nnp", tools.compile_c("nnp", images.NNP_SOURCE).read_bytes(), 0o6755)
    return layer.finish()


def pets_layer(name: str) -> LayerContent:
    """What the image of a pet holds: a picture's file, a document, and what the original was built upon."""
    layer = LayerWriter()
    layer.file(f"{name}.jpg", f"a picture of a {name}\n")
    layer.file("data.json", f'{{"image": "{name}.jpg"}}\n')
    layer.file("etc/os-release", 'NAME="Alpine Linux"\n')
    return layer.finish()


def fill(programs: Programs, address: str) -> None:
    """Push critest's images and the node suite's to the registry at ``address``."""
    images.fill(address)
    push = Pusher(address).push
    base = images.base_layer()
    push("registry.k8s.io/pause", ["3.10.2"], pause_image())
    busybox = WrittenImage((base,), SHELL)
    push(f"{E2E}/busybox", ["1.37.0-1", "1.36.1-1"], busybox)
    push(f"{E2E}/ipc-utils", ["1.4"], WrittenImage((base, images.marker_layer("ipc-utils")), SHELL))
    push(f"{E2E}/nonroot", ["1.5"], WrittenImage((base,), {**SHELL, "User": "1234"}))
    push(
        f"{E2E}/nonewprivs",
        ["1.4"],
        WrittenImage((base, nonewprivs_layer()), {"Env": [PATH], "Cmd": ["nnp"]}),
    )
    push(f"{E2E}/glibc-dns-testing", ["2.0.0"], WrittenImage((base, hostname_layer()), SHELL))
    web = {"Env": [PATH], "Entrypoint": ["nginx", "-g", "daemon off;"], "StopSignal": "SIGQUIT"}
    for tag in ("1.15-4", "1.27-0"):
        layers = (base, images.nginx_layer(80), images.marker_layer(f"nginx-{tag}"))
        push(f"{E2E}/nginx", [tag], WrittenImage(layers, web))
    agnhost = agnhost_image(programs)
    push(f"{E2E}/agnhost", ["2.63.0"], agnhost)
    previous = (*agnhost.layers, images.marker_layer("previous"))
    push(f"{E2E}/agnhost", ["2.55"], WrittenImage(previous, agnhost.settings))
    for name in ("kitten", "nautilus"):
        pets = {"Env": [PATH], "Entrypoint": ["/agnhost"], "Cmd": ["test-webserver"]}
        push(f"{E2E}/{name}", ["1.8"], WrittenImage((*agnhost.layers, pets_layer(name)), pets))


def key(programs: Programs) -> str:
    """What names the images' content."""
    digest = hashlib.sha256(programs.key.encode())
    for path in (Path(__file__), Path(images.__file__), Path(tools.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def storage(programs: Programs) -> Path:
    """The registry's storage with every image in it, made once for each version of these files."""
    return images.stored("node-registry", key(programs), partial(fill, programs))
