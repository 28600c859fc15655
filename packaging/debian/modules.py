#!/usr/bin/python3
"""Install Orlop's Python modules, and those it needs, into one directory for several Pythons.

    modules.py DIRECTORY VERSION...

Packages come from ``packaging/requirements/runtime.txt``, by hash. What is the same for each Python is there
once; what two of them want under one name in different ways fails the build.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIST = Path("packaging/requirements/runtime.txt")
BUILD_ONLY = ("setuptools",)
# What pip writes down about its own work.
NOTES = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
ENTRY = re.compile(r"^(\S+?)==.*(?:\n    --hash.*)+\n", re.M)


def runtime_list(target: Path) -> None:
    """The hashed list without what only builds."""
    text = LIST.read_text()
    target.write_text("".join(one[0] for one in ENTRY.finditer(text) if one[1] not in BUILD_ONLY))


def install(version: str, wanted: Path, target: Path) -> None:
    """Let pip put the packages for one Python into a directory."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"),
            *("--python-version", version, "--implementation", "cp", "--only-binary", ":all:"),
            *("--no-compile", "--no-deps", "--require-hashes", "-r", wanted, "--target", target),
        ],
        check=True,
    )


def merge(source: Path, target: Path) -> None:
    """Add what another Python needs. Raises SystemExit when it wants one file to be another."""
    for path in sorted(source.rglob("*")):
        if path.is_dir() or path.name in NOTES:
            continue
        place = target / path.relative_to(source)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)
        # Builders' notes may differ, such as the list of what went into a compiled module.
        elif ".dist-info/" not in path.as_posix() and not filecmp.cmp(path, place, shallow=False):
            raise SystemExit(f"{path.relative_to(source)} is not the same for each Python")


def tidy(site: Path) -> None:
    """Leave out what belongs to no program of this package."""
    shutil.rmtree(site / "bin", ignore_errors=True)
    for pattern in ("**/__pycache__", "**/tests", "**/testing", "typer/.agents"):
        for path in list(site.glob(pattern)):
            shutil.rmtree(path)
    for path in (site / "isal/isa-l").glob("*"):
        if path.name != "LICENSE":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in site.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


def main(target: str, versions: list[str]) -> None:
    """Fill ``target``."""
    site = Path(target)
    site.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "runtime.txt"
        runtime_list(wanted)
        for version in versions:
            install(version, wanted, Path(scratch) / version)
            merge(Path(scratch) / version, site)
    own = shutil.ignore_patterns("__pycache__", "*.pyi", "*.proto")
    shutil.copytree("src/orlop", site / "orlop", ignore=own)
    tidy(site)
    os.utime(site)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
