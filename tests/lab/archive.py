"""Packages of another release of Debian than this machine's, unpacked and not installed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from tests.conformance import tools
from tests.lab import root


def unpacked(names: Iterable[str], number: str) -> Path:
    """A directory with packages of Debian ``number``, of which only programs are used. Raises ToolError."""
    names = sorted(names)
    key = hashlib.sha256(" ".join([*names, number]).encode()).hexdigest()[:12]

    def make(scratch: Path) -> Path:
        # A list, and lists, of its own: what this machine installs from does not change.
        for part in ("parts", "lists/partial", "debs", "root"):
            (scratch / part).mkdir(parents=True)
        lines = root.debian_sources(root.RELEASES[number])
        (scratch / "parts/other.list").write_text("\n".join(lines) + "\n")
        settings = {
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": os.fspath(scratch / "parts"),
            "Dir::State::Lists": os.fspath(scratch / "lists"),
            "Dir::Cache::srcpkgcache": "",
            "Dir::Cache::pkgcache": "",
        }
        options = [item for key, value in settings.items() for item in ("-o", f"{key}={value}")]
        tools.run(["apt-get", *options, "-qq", "update"])
        tools.run(["apt-get", *options, "download", "-qq", *names], cwd=scratch / "debs")
        for package in sorted((scratch / "debs").glob("*.deb")):
            tools.run(["dpkg", "-x", package, scratch / "root"])
        return scratch / "root"

    return tools.cached(tools.cache_dir() / "unpacked" / f"{names[0]}-{key}", make)
