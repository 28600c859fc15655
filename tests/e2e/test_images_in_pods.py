"""Unusual images in real pods of both handlers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from orlop.cli.demo.imagewriter import LayerWriter, WrittenImage
from tests.conformance import images
from tests.node import Node, node
from tests.patience import PATIENCE
from tests.registry import Registry

HOST = "registry.k8s.io"
MANY = f"{HOST}/odd/many-layers:1"
IMPLYING = f"{HOST}/odd/implying:1"
LARGE = f"{HOST}/odd/large:1"
CONTENT = b"0123456789abcdef" * (4 << 20)


@pytest.fixture(scope="module")
def odd_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        base = images.base_layer()
        layers = [base]
        for number in range(118):
            writer = LayerWriter()
            writer.file(f"layers/{number}", str(number))
            writer.file("top", str(number))
            layers.append(writer.finish())
        registry.push(f"{HOST}/odd/many-layers", ["1"], WrittenImage(tuple(layers), {}))
        upper = LayerWriter()
        upper.file("tmp/new", "new")
        upper.file("root/.profile", "new")
        registry.push(f"{HOST}/odd/implying", ["1"], WrittenImage((base, upper.finish()), {}))
        large = LayerWriter()
        large.file("large", CONTENT)
        registry.push(f"{HOST}/odd/large", ["1"], WrittenImage((base, large.finish()), {}))
        with node(registry.address) as one:
            one.wait_ready()
            yield one


def output(one: Node, image: str, script: str, handler: str) -> str:
    """What a shell script prints in a container of ``image``."""
    pod_id, container = one.run(image, "/bin/sh", "-c", script, handler=handler)
    try:
        status = one.wait_exit(container, timeout=120 * PATIENCE)
        done = one.crictl("logs", container)
        assert status["exitCode"] == 0, done
        return done.out
    finally:
        one.remove_pod(pod_id)


@pytest.mark.parametrize("handler", ["vm", "process"])
def test_an_image_of_many_layers(odd_node: Node, handler: str) -> None:
    assert output(odd_node, MANY, "ls /layers | wc -l; cat /top", handler).split() == ["118", "117"]


@pytest.mark.parametrize("handler", ["vm", "process"])
def test_directories_that_a_layer_implies(odd_node: Node, handler: str) -> None:
    script = "stat -c '%n %a' /tmp /root /; touch /tmp/x; ls /tmp"
    out = output(odd_node, IMPLYING, script, handler).splitlines()
    assert out == ["/tmp 1777", "/root 700", "/ 755", "new", "x"]


@pytest.mark.parametrize("handler", ["vm", "process"])
def test_a_large_file_comes_whole(odd_node: Node, handler: str) -> None:
    out = output(odd_node, LARGE, "md5sum < /large; stat -c %s /large", handler).split()
    assert out == [hashlib.md5(CONTENT).hexdigest(), "-", str(len(CONTENT))]
