"""Bad input and a bad machine: the right status code, one sentence that names object and cause, no rest."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.cli.demo.imagewriter import LayerWriter, Pusher, WrittenImage
from tests.conformance import images, tools
from tests.node import BUSYBOX, NGINX, OWN, Done, Node
from tests.node import node as new_node

HANDLERS = ("vm", "process")
ERROR = re.compile(r"code = (\w+) desc = ([^\n]+)")


def refused(done: Done) -> tuple[str, str]:
    """The status code and the sentence of a call that failed."""
    assert done.code != 0, f"this should have failed: {done}"
    match = ERROR.search(done.err)
    assert match is not None, done
    code, sentence = match[1], match[2].strip('"')
    assert "Traceback" not in sentence and code not in ("Unknown", "Internal"), done
    return code, sentence


@pytest.fixture
def clean(shared_node: Node) -> Iterator[Node]:
    """The shared node; a refused call must leave nothing on the machine."""
    shared_node.remove_all()
    yield shared_node
    shared_node.remove_all()
    shared_node.wait_no_leaks_but_warm()


def test_unknown_image(clean: Node) -> None:
    for name in (f"{OWN}/absent:1", f"{OWN}/layers:absent", f"{OWN}/layers@sha256:{'0' * 64}"):
        code, sentence = refused(clean.crictl("pull", name, check=False))
        assert code == "NotFound" and name in sentence
    code, sentence = refused(clean.crictl("pull", "registry.k8s.io/UPPER:1", check=False))
    assert code == "InvalidArgument" and "UPPER" in sentence


def test_image_for_another_processor(clean: Node) -> None:
    code, sentence = refused(clean.crictl("pull", f"{OWN}/foreign:1", check=False))
    assert code in ("NotFound", "FailedPrecondition", "InvalidArgument")
    assert "riscv64" in sentence and "amd64" in sentence and "foreign" in sentence
    assert clean.crictl("images", "-q", f"{OWN}/foreign:1").out.strip() == ""


@pytest.mark.parametrize("handler", HANDLERS)
def test_container_of_an_image_that_was_not_pulled(clean: Node, handler: str) -> None:
    pod = clean.pod_config()
    pod_id = clean.run_pod(pod, handler)
    code, sentence = refused(clean.try_create(pod_id, pod, f"{OWN}/absent:1", "true"))
    assert code in ("NotFound", "FailedPrecondition") and "absent" in sentence


@pytest.mark.parametrize("handler", HANDLERS)
def test_command_that_does_not_exist(clean: Node, handler: str) -> None:
    clean.pull(BUSYBOX)
    pod = clean.pod_config()
    pod_id = clean.run_pod(pod, handler)
    created = clean.try_create(pod_id, pod, BUSYBOX, "/no/such/command")
    if created.code == 0:
        container = created.out.strip()
        created = clean.crictl("start", container, check=False)
        assert clean.status(container)["state"] != "CONTAINER_RUNNING"
    code, sentence = refused(created)
    assert code in ("NotFound", "InvalidArgument", "FailedPrecondition") and "/no/such/command" in sentence
    answer = clean.run(BUSYBOX, "sleep", "600", handler=handler)[1]
    failed = clean.crictl("exec", "-s", answer, "/no/such/command", check=False)
    assert failed.code != 0 and "/no/such/command" in failed.err + failed.out


@pytest.mark.parametrize("handler", HANDLERS)
def test_volume_that_cannot_be_there(clean: Node, handler: str) -> None:
    clean.pull(BUSYBOX)
    pod = clean.pod_config()
    pod_id = clean.run_pod(pod, handler)
    # A path that is only missing becomes a directory, but not below a file.
    missing = "/etc/passwd/volume"
    mounts = [{"container_path": "/data", "host_path": missing}]
    done = clean.try_create(pod_id, pod, BUSYBOX, "true", mounts=mounts)
    if done.code == 0:
        done = clean.crictl("start", done.out.strip(), check=False)
    code, sentence = refused(done)
    assert code in ("NotFound", "InvalidArgument", "FailedPrecondition") and missing in sentence


@pytest.mark.parametrize(("field", "word"), [("network", "network"), ("pid", "PID"), ("ipc", "IPC")])
def test_vm_pod_that_wants_to_be_the_host(clean: Node, field: str, word: str) -> None:
    config = clean.pod_config(linux={"security_context": {"namespace_options": {field: 2}}})
    code, sentence = refused(clean.try_pod(config, "vm"))
    assert code == "FailedPrecondition"
    assert word in sentence and config["metadata"]["name"] in sentence and "process" in sentence
    assert clean.crictl("pods", "-q").out.strip() == ""


def test_unknown_handler(clean: Node) -> None:
    code, sentence = refused(clean.try_pod(clean.pod_config(), "nonsense"))
    assert code in ("InvalidArgument", "NotFound") and "nonsense" in sentence


def test_wrong_digest(tmp_path: Path) -> None:
    layer = LayerWriter()
    layer.file("a", os.urandom(4096))
    image = WrittenImage((layer.finish(),), {"Cmd": ["/a"]})
    storage = tmp_path / "storage"
    with images.serve(storage, f"127.0.0.1:{tools.free_port()}", read_only=False) as address:
        Pusher(address).push("registry.k8s.io/orlop-test/broken", ["1"], image)
        digest = image.layers[0].blob.digest.partition(":")[2]
        (data,) = storage.rglob(f"{digest}/data")
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(bytes(content))
        with new_node(address, handler="process") as node:
            code, sentence = refused(node.crictl("pull", f"{OWN}/broken:1", check=False))
            assert code == "DataLoss" and "broken" in sentence and digest[:12] in sentence
            assert node.crictl("images", "-q").out.strip() == ""


def test_full_disk(registry: str, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", place], check=True)
    try:
        with new_node(registry, handler="process", extra={"top": {"root": os.fspath(place)}}) as node:
            code, sentence = refused(node.crictl("pull", NGINX, check=False))
            assert code == "ResourceExhausted" and "nginx" in sentence
            assert node.crictl("images", "-q").out.strip() == ""
    finally:
        subprocess.run(["umount", place], check=True)


def test_missing_kernel(registry: str) -> None:
    files = {name: f"/nowhere/{name}" for name in ("kernel", "initrd", "image")}
    with new_node(registry, extra={"vm": {"guest": files}}) as node:
        code, sentence = refused(node.try_pod(node.pod_config(), "vm"))
        assert code in ("NotFound", "FailedPrecondition", "Unavailable") and "/nowhere/kernel" in sentence
        conditions = {one["type"]: one for one in node.json("info")["status"]["conditions"]}
        assert not conditions["RuntimeReady"]["status"]
        assert "/nowhere/kernel" in conditions["RuntimeReady"]["message"]
        assert node.run_pod(handler="process")


FAILING_PLUGIN = """#!/bin/sh
if [ "$CNI_COMMAND" = VERSION ]; then
    echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}'
elif [ "$CNI_COMMAND" = ADD ]; then
    echo '{"cniVersion": "1.0.0", "code": 100, "msg": "no cable today"}'
    exit 1
fi
"""


@pytest.mark.parametrize("handler", HANDLERS)
def test_network_plugin_that_fails(registry: str, handler: str) -> None:
    with new_node(registry, handler=handler) as node:
        plugins = node.scratch / "plugins"
        plugins.mkdir()
        (plugins / "nocable").write_text(FAILING_PLUGIN)
        (plugins / "nocable").chmod(0o755)
        node.stop()
        config = node.scratch / "config.toml"
        text = config.read_text()
        assert "[network]\n" in text
        directories = json.dumps([os.fspath(plugins), "/opt/cni/bin", "/usr/lib/cni"])
        config.write_text(text.replace("[network]\n", f"[network]\nbin_dirs = {directories}\n"))
        file = node.scratch / "cni" / "10-private.conflist"
        network = json.loads(file.read_text())
        good = dict(network)
        network["plugins"] = [*network["plugins"], {"type": "nocable"}]
        file.write_text(json.dumps(network))
        node.start()
        node.wait_ready()
        pod = node.pod_config()
        code, sentence = refused(node.try_pod(pod))
        assert code in ("Unavailable", "FailedPrecondition", "Aborted")
        assert "nocable" in sentence and "no cable today" in sentence
        assert node.crictl("pods", "-q").out.strip() == ""
        node.wait_no_leaks_but_warm()
        file.write_text(json.dumps(good))
        assert node.run_pod(pod)
