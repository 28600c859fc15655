"""The validation programs of opencontainers/runtime-tools, built from its Go module, and their runs.

Each program makes bundles of a root file system and ``runtimetest``, which it looks for in its working
directory, calls the runtime that ``$RUNTIME`` names as a user would, and speaks TAP.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.conformance import tools
from tests.patience import SLOWNESS

VERSION = "0.9.0"
PACKAGE = "github.com/opencontainers/runtime-tools"
MODULE = Path(__file__).with_name("module")
INSIDE = "runtimetest"
ROOT = "rootfs-amd64.tar.gz"
LONGEST = 120 * SLOWNESS
"""Seconds of one program."""

_RESULT = re.compile(r"(not )?ok \d+ - (.*)")
_ERROR = re.compile(r'\s+"error": "(.*?)(\\n.*)?",?$')


def build() -> Path:
    """The directory of the programs, built if they are not in the cache: a minute, once."""
    pins = b"".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum"))
    key = hashlib.sha256(pins).hexdigest()[:12]
    return tools.cached(tools.cache_dir() / "runtime-tools" / f"{VERSION}-{key}", _build)


def _build(scratch: Path) -> Path:
    go = tools.find_go()
    tools.say(f"building the validation programs of runtime-tools {VERSION} (a minute, once)")
    # runtimetest runs where there is no C library, and a vendored tree is not looked for.
    env = {"GOFLAGS": "-buildvcs=false -mod=mod", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    source, built = scratch / "source", scratch / "built"
    shutil.copytree(MODULE, source)
    (built / "validation").mkdir(parents=True)
    command = [go, "build", "-trimpath", "-ldflags", "-s -w", "-p", "2", "-o"]
    packages = tools.run([go, "list", f"{PACKAGE}/validation/..."], cwd=source, env=env).split()
    programs = [package for package in packages if not package.endswith("/util")]
    tools.run([*command, f"{built}/validation/", *programs], cwd=source, env=env)
    tools.run([*command, built / INSIDE, f"{PACKAGE}/cmd/{INSIDE}"], cwd=source, env=env)
    found = tools.run([go, "list", "-m", "-f", "{{.Dir}}", PACKAGE], cwd=source, env=env).strip()
    shutil.copyfile(Path(found) / ROOT, built / ROOT)
    return built


def names(directory: Path) -> list[str]:
    """All programs."""
    return sorted(path.name for path in (directory / "validation").iterdir())


@dataclass(frozen=True)
class Run:
    """What a program said of a runtime: how many of its checks passed, and what it complains of."""

    passed: int
    complaints: tuple[str, ...]
    said: str


def run(directory: Path, name: str, runtime: Path, scratch: Path) -> Run:
    """Run a program; what it makes is in ``scratch``."""
    env = {**os.environ, "RUNTIME": os.fspath(runtime), "TMPDIR": os.fspath(scratch)}
    try:
        done = subprocess.run(
            [directory / "validation" / name],
            cwd=directory,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Run(0, (f"it did not end within {LONGEST:g} seconds",), "")
    return read(done.stdout, done.stderr, done.returncode)


def read(output: str, errors: str, code: int) -> Run:
    """What a program said, from its output, its standard error and its exit code."""
    results = [found for line in output.splitlines() if (found := _RESULT.match(line))]
    complaints = [found[2] for found in results if found[1]]
    if not results:
        # A program that only goes through a life says nothing of what went well.
        complaints += [found[1] for line in output.splitlines() if (found := _ERROR.match(line))]
    if code:
        last = next(iter(reversed(errors.strip().splitlines())), "")
        complaints.append(f"it ended with {code}: {last}")
    passed = sum(not found[1] for found in results)
    return Run(passed, tuple(complaints), "\n".join(errors.strip().splitlines()[:4]))
