"""Images without a registry, by the command ``orlop`` and by the Python client."""

from __future__ import annotations

import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop.blocking
from tests.commandline import Cli, Inside, until
from tests.node import BUSYBOX, Node


@pytest.fixture
def cli(shared_node: Node) -> Iterator[Cli]:
    yield Cli(shared_node)
    shared_node.remove_all()


def test_an_image_goes_into_a_file_and_comes_back(cli: Cli, tmp_path: Path) -> None:
    cli("pull", "-q", BUSYBOX)
    archive = tmp_path / "busybox.tar"
    cli("save", "-o", str(archive), BUSYBOX)
    written = archive.read_bytes()
    assert cli("save", BUSYBOX).raw == written and list(tmp_path.iterdir()) == [archive]
    cli("rmi", BUSYBOX)
    assert cli("load", "-i", str(archive)).out == f"Loaded image: {BUSYBOX}\n"
    (loaded,) = cli("load", "-q", stdin=written).out.split()
    assert cli("run", "--rm", "--pull", "never", BUSYBOX, "echo", "from a file").out == "from a file\n"
    layout = tmp_path / "layout"
    with tarfile.open(archive) as tar:
        tar.extractall(layout, filter="data")
    (layout / "manifest.json").unlink()
    assert cli("load", "-q", "-i", str(layout), "--name", "again").out.split() == [loaded]
    with orlop.blocking.connect(cli.node.socket) as node:
        assert [image.id for image in node.load(archive, name="third:3")] == [loaded]
        node.save(tmp_path / "third.tar", "third:3")
        with (tmp_path / "third.tar").open("rb") as file:
            (image,) = node.load(file)
        assert {BUSYBOX, "docker.io/library/again:latest", "docker.io/library/third:3"} <= set(image.tags)
        node.remove_image(image.id)


def test_a_file_system_becomes_an_image(cli: Cli, tmp_path: Path) -> None:
    cli("pull", "-q", BUSYBOX)
    script = "tar -c -f - bin etc"
    made = cli("run", "--rm", BUSYBOX, "sh", "-c", script).raw
    changes = ("-c", 'CMD ["sh", "-c", "echo $WHO is $(id -u)"]', "-c", "ENV WHO=somebody", "-c", "USER 12")
    (image,) = cli("import", *changes, "-", "made:1", stdin=made).out.split()
    assert cli("run", "--rm", "made:1").out == "somebody is 12\n"
    assert cli("import", *changes, "-", "made:2", stdin=made).out.split() == [image], "the same each time"
    cli("rmi", "--force", image)


def test_what_is_no_archive_is_refused_in_one_sentence(cli: Cli, tmp_path: Path) -> None:
    before = cli("images", "--json").out
    for args, why in (
        (("load", "-i", str(tmp_path / "none")), "there is no file"),
        (("load", "-i", str(tmp_path)), "no OCI layout"),
        (("load",), "the archive is empty"),
        (("import", "-", "UPPER"), "must be lower case"),
        (("import", "-c", "RUN true", "-", "x"), "--change takes"),
        (("save", "-o", str(tmp_path / "x"), "not/here"), "not here"),
        (("save", "-o", "/no/such/place", BUSYBOX), "No such file"),
    ):
        done = cli(*args, check=False)
        assert done.code in (1, 2) and why in done.err and done.err.count("\n") == 1, done
    assert cli("images", "--json").out == before and list(tmp_path.iterdir()) == []


def test_who_goes_away_while_sending_leaves_nothing(cli: Cli) -> None:
    reading, writing = os.pipe()
    ingest = cli.node.scratch / "root" / "images" / "ingest"
    sending = cli.start("load", stdin=reading)
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as file:
        entry = tarfile.TarInfo("manifest.json")
        entry.size = 1 << 30
        file.write(entry.tobuf() + bytes(1 << 16))
        until(lambda: any(path.stat().st_size for path in ingest.glob("load-*/archive")), "nothing came")
        sending.send_signal(signal.SIGKILL)
        sending.communicate()
    until(lambda: not list(ingest.iterdir()), "what came is still there")


def test_names_of_images(shared_node: Node) -> None:
    cli = Inside(shared_node)
    cli("pull", "-q", BUSYBOX)
    cli("tag", BUSYBOX, "mine:1", "yours")
    image_id = cli("images", "-q", "yours").out.strip()
    names = ("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"id={image_id}")
    mine, yours = "docker.io/library/mine:1", "docker.io/library/yours:latest"
    assert {BUSYBOX, mine, yours} <= set(cli(*names).out.split())
    assert cli("run", "--rm", "--pull", "never", "mine:1", "echo", "mine").out == "mine\n"
    cli("rmi", "mine:1")
    left = set(cli(*names).out.split())
    assert {BUSYBOX, yours} <= left and mine not in left, "one of several goes alone"
    several = cli("rmi", image_id, check=False)
    assert several.code == 1 and yours in several.err and "--force" in several.err
    assert "not called other" in cli("untag", "yours", "other", check=False).err
    cli("untag", image_id)
    assert image_id in cli("images", "-q", "--filter", "dangling=true").out.split()
    assert cli("image", "exists", image_id).code == 0
    cli("image", "rm", image_id)
    assert cli("image", "exists", image_id, check=False).code == 1
    assert cli("rmi", image_id, check=False).code == 1 and cli("rmi", "--ignore", image_id).code == 0
    with orlop.blocking.connect(cli.node.socket) as node:
        node.pull(BUSYBOX)
        assert node.tag(BUSYBOX, "third").tags == tuple(sorted([BUSYBOX, "docker.io/library/third:latest"]))
        assert node.untag("third").tags == (BUSYBOX,)
    shared_node.remove_all()
