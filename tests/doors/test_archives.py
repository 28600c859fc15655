"""Images between podman and Orlop, in files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commandline import Cli
from tests.doors.podman import Podman, podman
from tests.node import BUSYBOX, Node


@pytest.fixture
def peer(shared_node: Node) -> Iterator[Podman]:
    with tempfile.TemporaryDirectory(prefix="orlop-podman-") as name, podman(Path(name), shared_node) as one:
        yield one


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive", "oci-dir"])
def test_podman_loads_what_was_saved_and_saves_what_is_loaded(
    kind: str, peer: Podman, shared_node: Node, tmp_path: Path
) -> None:
    cli = Cli(shared_node)
    ours, theirs = tmp_path / "ours.tar", tmp_path / "theirs"
    cli("pull", "-q", BUSYBOX)
    try:
        cli("save", "-o", str(ours), BUSYBOX)
        cli("rmi", BUSYBOX)
        assert f"Loaded image: {BUSYBOX}" in peer("load", "-i", str(ours)).out
        assert peer("run", "--rm", "--network", "none", BUSYBOX, "echo", "theirs").out == "theirs\n"
        peer("tag", BUSYBOX, "localhost/from/podman:5")
        peer("save", "-q", "--format", kind, "-o", str(theirs), "localhost/from/podman:5")
        named = () if kind != "oci-dir" else ("--name", "localhost/from/podman:5")
        said = cli("load", "-i", str(theirs), *named).out
        assert said == "Loaded image: localhost/from/podman:5\n"
        run = ("run", "--rm", "--pull", "never", "localhost/from/podman:5", "echo", "ours")
        assert cli(*run).out == "ours\n"
        exported = peer("run", "-d", "--network", "none", BUSYBOX, "true").out.strip()
        tree = peer("export", exported).raw
        cli("import", "-c", 'CMD ["echo", "exported"]', "-", "localhost/exported", stdin=tree)
        assert cli("run", "--rm", "localhost/exported").out == "exported\n"
    finally:
        peer.remove_containers()
        for image in (BUSYBOX, "localhost/from/podman:5", "localhost/exported"):
            cli("rmi", image, check=False)
        shared_node.remove_all()
