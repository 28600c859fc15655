"""A node whose guests obey orders to misbehave; everything else about it is as always."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import orlop
from orlop.guestos.build import GuestArtifacts, build
from orlop.linux.removal import remove_tree
from tests.e2e.vm_environment import CACHE
from tests.node import Node, node

OBEDIENT = Path(__file__).with_name("obedient.py")


def artifacts() -> GuestArtifacts:
    """The guest whose agent obeys."""
    sources = Path(orlop.__file__).parent
    package = CACHE / f"obedient-{os.getpid()}" / "orlop"
    try:
        for room in ("linux", "wire", "guest"):
            shutil.copytree(sources / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(sources / "__init__.py", package)
        (package / "guest" / "main.py").rename(package / "guest" / "honest.py")
        shutil.copy(OBEDIENT, package / "guest" / "main.py")
        return asyncio.run(build(CACHE / "guest", package=package))
    finally:
        remove_tree(package.parent)


@contextlib.contextmanager
def obedient_node(registry: str) -> Iterator[Node]:
    """The node, ready. Its template is kept apart from that of honest guests."""
    found = artifacts()
    honest = Path(os.environ.get("ORLOP_TEST_BASE") or "/var/lib/orlop")
    base = CACHE / "obedient-root"
    base.mkdir(parents=True, exist_ok=True)
    if not (base / "guest").is_symlink():
        (base / "guest").symlink_to(honest / "guest")
    guest = {name: os.fspath(getattr(found, name)) for name in ("kernel", "initrd", "image")}
    before = os.environ.get("ORLOP_TEST_BASE")
    os.environ["ORLOP_TEST_BASE"] = os.fspath(base)
    try:
        with node(registry, extra={"vm": {"guest": guest}}) as one:
            one.wait_ready()
            yield one
    finally:
        os.environ.pop("ORLOP_TEST_BASE")
        if before is not None:
            os.environ["ORLOP_TEST_BASE"] = before


def order(one: Node, container: str, *words: str) -> None:
    """Give the agent of a container's pod an order, to which there is no answer."""
    one.crictl("exec", "--sync", "--timeout", "1", container, f"hostile:{words[0]}", *words[1:], check=False)
