"""Programs of others, built from Go modules that a ``go.mod`` of ours pins."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.conformance import tools

FLAGS = ("-trimpath", "-ldflags", "-s -w", "-p", "2")

Finish = Callable[[Path, Callable[[str], Path]], None]
"""Puts more beside the programs: it gets their directory, and what says where a module's source is."""


def version(module: Path, of: str) -> str:
    """The version of the module ``of`` that the ``go.mod`` in the directory ``module`` pins."""
    found = re.search(rf"(?:^\s*|require ){re.escape(of)} (v\S+)", (module / "go.mod").read_text(), re.M)
    assert found is not None, f"{module}/go.mod does not pin {of}"
    return found[1]


def key(module: Path) -> str:
    """What names the programs' content: the pins, and sources of our own beside them."""
    files = sorted(path for path in module.rglob("*") if path.suffix in (".go", ".mod", ".sum"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def build(name: str, module: Path, packages: Mapping[str, str], finish: Finish | None = None) -> Path:
    """A directory with the programs of these Go packages, kept in the cache below ``name``: minutes, once.

    Raises ToolError.
    """

    def make(scratch: Path) -> Path:
        go = tools.find_go()
        tools.say(f"building {', '.join(packages)} (minutes, once)")
        env = {"GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
        # Go wants to write beside go.mod.
        place = Path(shutil.copytree(module, scratch / "module"))
        made = scratch / "made"
        made.mkdir()
        for program, package in packages.items():
            tools.run([go, "build", *FLAGS, "-o", made / program, package], cwd=place, env=env)

        def source(of: str) -> Path:
            return Path(tools.run([go, "list", "-m", "-f", "{{.Dir}}", of], cwd=place, env=env).strip())

        if finish is not None:
            finish(made, source)
        return made

    return tools.cached(tools.cache_dir() / name / key(module), make)
