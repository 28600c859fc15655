"""Passwords for registries: kept by us where skopeo finds them, and found where it keeps them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.cli.demo.imagewriter import LayerWriter, WrittenImage
from orlop.client import credentials
from orlop.config import ImageConfig
from orlop.errors import InvalidArgument, Unauthenticated
from orlop.images import authfile
from orlop.images.model import RegistryAuth
from orlop.images.store import ImageStore
from tests.commandline import COMMAND
from tests.registry import PASSWORD, USER, Registry


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry that asks for a password, and no password yet."""
    writer = LayerWriter()
    writer.file("etc/secret", b"x")
    with Registry(tmp_path / "open") as registry:
        registry.push("app", ["1"], WrittenImage((writer.finish(),), {}))
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path / "run"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    with Registry(tmp_path / "guarded", auth=True, storage=tmp_path / "open" / "storage") as registry:
        monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", registry.conf)
        yield registry


def orlop(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], input=stdin, capture_output=True, text=True, check=False)


async def test_who_logs_in_may_pull_until_he_logs_out(
    guarded: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{guarded.address}/app:1"
    login = ("login", guarded.address, "-u", USER, "--password-stdin", "--tls-verify=false")
    refused = orlop(*login, stdin="wrong\n")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1, refused
    assert await credentials.of_image(name) is None
    done = orlop(*login, stdin=f"{PASSWORD}\n")
    kept = tmp_path / "run" / "containers" / "auth.json"
    assert done.returncode == 0 and str(kept) in done.stdout and kept.stat().st_mode & 0o077 == 0
    found = await credentials.of_image(name)
    assert found is not None
    store = ImageStore(tmp_path / "store", ImageConfig(registries_conf=guarded.conf))
    await store.open()
    # What only the request knows: the daemon has other files than its clients.
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path / "elsewhere"))
    with pytest.raises(Unauthenticated):
        await store.pull(name)
    await store.pull(name, RegistryAuth(auth=found.auth))
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path / "run"))
    await store.close()
    assert orlop("logout", guarded.address).returncode == 0
    assert await credentials.of_image(name) is None
    assert orlop("logout", guarded.address).returncode == 1
    assert orlop("logout").returncode == 2


@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("quay.io", "quay.io/some/app:1"),
        ("quay.io/some", "quay.io/some/app"),
        ("quay.io/some/app", "quay.io/some/app"),
        ("https://index.docker.io/v1/", "busybox"),
        ("docker.io", "docker.io/library/busybox"),
        ("https://quay.io", "quay.io/some/app"),
    ],
)
async def test_the_keys_that_others_write(
    key: str, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = base64.b64encode(b"me:secret").decode()
    file = tmp_path / "auth.json"
    others = {"quay.io/other": {"auth": "b3RoZXI6"}, "notquay.io": {"auth": "b3RoZXI6"}, "x": 5}
    file.write_text(json.dumps({"auths": {**others, key: {"auth": pair}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", os.fspath(file))
    found = await credentials.of_image(image)
    assert found is not None and found.auth == pair
    assert await credentials.of_image("ghcr.io/some/app") is None
    assert await credentials.of_image("NO NAME") is None


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff"])
async def test_a_damaged_file_is_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "auth.json"
    file.write_bytes(text.encode("latin-1"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", os.fspath(file))
    with pytest.raises(InvalidArgument, match=r"auth\.json"):
        await credentials.of_image("busybox")


def test_the_files_of_others_come_after_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
    for path, auths in zip(authfile.places(), ({"a": 1, "b": 1}, {"b": 2, "c": 2}), strict=True):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"auths": auths}))
    assert authfile.merged() == {"auths": {"a": 1, "b": 1, "c": 2}}
