"""The last release, as a user has it: its wheel, made from the commit that it was, and its guest image.

Both are kept in the cache. A checkout without history has no such commit, which is an error: fetch it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.conformance.tools import cache_dir, cached, run

VERSION = "0.1.0"
COMMIT = "fcc2a3ab42cd1133a8f378c3d8148c16de14de9a"
CHECKOUT = Path(__file__).resolve().parents[2]


def site() -> Path:
    """A directory with the release's Python package in it, installed from its wheel. Raises ToolError."""
    return cached(cache_dir() / "release" / COMMIT[:12], _site)


def _site(scratch: Path) -> Path:
    (scratch / "source").mkdir()
    git = ["git", "-c", f"safe.directory={CHECKOUT}", "-C", CHECKOUT]
    run([*git, "archive", "--output", scratch / "source.tar", COMMIT])
    run(["tar", "-xf", scratch / "source.tar", "-C", scratch / "source"])
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # What builds it and what it needs is what this environment has: nothing is downloaded.
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", scratch, scratch / "source"])
    (wheel,) = scratch.glob("orlop-*.whl")
    run([*pip, "install", "--no-deps", "--target", scratch / "site", wheel])
    return scratch / "site"


def environment(package: Path | None) -> dict[str, str]:
    """What a Python is started with so that it takes the package of ``package``, or this checkout's."""
    own = dict(os.environ)
    own.pop("PYTHONPATH", None)
    return own if package is None else own | {"PYTHONPATH": os.fspath(package)}


def guest(package: Path | None, root: Path) -> None:
    """Build that version's guest image below ``root`` and make it the current one. Raises ToolError."""
    config = root / "build.toml"
    root.mkdir(parents=True, exist_ok=True)
    config.write_text(f'root = "{root}"\n')
    command = [sys.executable, "-m", "orlop.cli.main", "guest", "build", "--config", config]
    run(command, env={"PYTHONPATH": os.fspath(package) if package else ""})
