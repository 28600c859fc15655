"""The list of all that an installation consists of: valid, complete, and with hashes where there are any."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("cyclonedx", reason="run ./setup.sh: the development packages are older than this test")

ROOT = Path(__file__).parents[2]
PACKAGES = [
    {"name": "linux-image-6.1.0-1-amd64", "version": "6.1.1-1", "sha256": "1" * 64},
    {"name": "libc6", "version": "2.36-9+deb12u1", "sha256": "2" * 64},
]


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "scripts" / "sbom.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def written(sbom: ModuleType, tmp_path: Path) -> str:
    (tmp_path / "manifest.json").write_text(json.dumps({"packages": PACKAGES}))
    text: str = sbom.document(tmp_path)
    return text


def parts(document: str, where: str) -> dict[str, dict[str, Any]]:
    wanted = {"name": "orlop:part", "value": where}
    found = {one["name"]: one for one in json.loads(document)["components"] if wanted in one["properties"]}
    assert found, where
    return found


def test_it_is_valid(written: str) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written) is None


def test_every_locked_package_is_there_with_its_hashes(written: str) -> None:
    lock = (ROOT / "packaging/requirements/runtime.txt").read_text()
    versions = dict(re.findall(r"^(\S+)==(\S+)", lock, re.M))
    found = parts(written, "python")
    assert {name: one["version"] for name, one in found.items()} == versions
    assert sum(len(one["hashes"]) for one in found.values()) == lock.count("--hash=sha256:")


def test_what_set_up_installs_and_the_guest_is_made_of(written: str) -> None:
    host, guest = parts(written, "host"), parts(written, "guest")
    assert {"qemu-system-x86", "skopeo", "runc", "crun", "conmon"} <= host.keys()
    assert {(one["name"], one["version"], one["hashes"][0]["content"]) for one in guest.values()} == {
        (one["name"], one["version"], one["sha256"]) for one in PACKAGES
    }
    (whole,) = [one for one in json.loads(written)["dependencies"] if one["ref"] == "orlop"]
    assert len(whole["dependsOn"]) == len(json.loads(written)["components"])


def test_without_a_guest_image_it_says_so(
    sbom: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(sbom.guest_parts(tmp_path)) == []
    assert "there is no guest image" in capsys.readouterr().err
