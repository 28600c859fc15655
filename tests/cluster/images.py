"""The images of the cluster's specs: the node suite's, and what they want beside them.

An image that a spec wants and that is not here is in the list of exceptions.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from orlop.cli.demo.imagewriter import LayerContent, LayerWriter, Pusher, WrittenImage
from tests.conformance import images
from tests.conformance.images import E2E, PATH
from tests.csi_life import pinned
from tests.node_e2e import images as node_images
from tests.node_e2e.programs import Programs

MODULE = Path(__file__).with_name("module")
"""Pins the API server that a spec of the aggregation layer puts behind the cluster's own."""
SAMPLE = "sample-apiserver"


def sample_layer() -> LayerContent:
    """Kubernetes' sample API server, built from its Go module."""
    layer = LayerWriter()
    program = pinned.build(SAMPLE, MODULE, {SAMPLE: f"k8s.io/{SAMPLE}"}) / SAMPLE
    layer.file(SAMPLE, program.read_bytes(), 0o755)
    return layer.finish()


def etcd_layer() -> LayerContent:
    """Debian's etcd, with which the sample API server keeps its objects."""
    return node_images.program_layer("etcd-server", "usr/bin/etcd", "usr/local/bin/etcd")


def network_layer() -> LayerContent:
    """Debian's dig, getent and nc, with which specs look for names and ports in agnhost's image."""
    root = node_images.with_dependencies("bind9-dnsutils", "libc-bin", "netcat-openbsd")
    nc = next(path for path in ("bin/nc.openbsd", "usr/bin/nc.openbsd") if (root / path).is_file())
    layer = LayerWriter()
    layer.tree(root, ["usr/bin/dig", "usr/bin/getent"])
    layer.file("bin/nc", (root / nc).read_bytes(), 0o755)
    images.libraries(layer, root, "usr/bin/dig", "usr/bin/getent", nc)
    return layer.finish()


def fill(programs: Programs, address: str) -> None:
    """Push everything to the registry at ``address``."""
    node_images.fill(programs, address)
    network, agnhost = network_layer(), node_images.agnhost_image(programs)
    names = (images.base_layer(), node_images.hostname_layer(), network)
    push = Pusher(address).push
    push(f"{E2E}/agnhost", ["2.63.0"], WrittenImage((*agnhost.layers, network), agnhost.settings))
    sample = {"Env": [PATH], "Entrypoint": [f"/{SAMPLE}"]}
    push(f"{E2E}/{SAMPLE}", ["1.29.2"], WrittenImage((images.base_layer(), sample_layer()), sample))
    push(
        "registry.k8s.io/etcd",
        ["3.6.8-0"],
        WrittenImage((images.base_layer(), etcd_layer()), {"Env": [PATH]}),
    )
    push(f"{E2E}/glibc-dns-testing", ["2.0.0"], WrittenImage(names, node_images.SHELL))


def key(programs: Programs) -> str:
    """What :func:`fill` pushes, by a name that is another when that is."""
    digest = hashlib.sha256(node_images.key(programs).encode())
    digest.update(Path(__file__).read_bytes() + pinned.key(MODULE).encode())
    return digest.hexdigest()[:16]


def storage(programs: Programs) -> Path:
    """The registry's storage with every image in it, made once for each version of these files."""
    return images.stored("cluster-registry", key(programs), partial(fill, programs))
