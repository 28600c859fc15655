"""The lists of Python packages that setup.sh installs: complete, hashed, and from no index in particular."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LISTS = ROOT / "packaging" / "requirements"
ENTRY = re.compile(r"^(\S+)==(\S+)(?: ; [^\\]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M)


def listed(name: str) -> dict[str, set[Version]]:
    text = (LISTS / name).read_text()
    assert not ENTRY.sub("", text).strip(), (
        "every entry has a version and its hashes, and nothing else is there"
    )
    found: dict[str, set[Version]] = {}
    for package, version, _ in ENTRY.findall(text):
        found.setdefault(canonicalize_name(package), set()).add(Version(version))
    return found


@pytest.mark.parametrize(
    ("name", "extras"),
    [("runtime.txt", ()), ("development.txt", ("dev", "tracing", "tenants"))],
    ids=str,
)
def test_what_pyproject_asks_for_is_listed(name: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in extras:
        asked += project["project"]["optional-dependencies"][extra]
    found = listed(name)
    for requirement in map(Requirement, asked):
        if requirement.name != "orlop":
            versions = found[canonicalize_name(requirement.name)]
            assert all(version in requirement.specifier for version in versions), (
                f"{requirement}: run make lock"
            )


def test_both_lists_agree() -> None:
    runtime, development = listed("runtime.txt"), listed("development.txt")
    assert runtime.items() <= development.items()
