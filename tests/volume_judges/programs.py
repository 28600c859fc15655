"""The judges, which others wrote: static programs, built once from their packages and kept in the cache."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tests.conformance import tools

FIO = "3.33"
CRATES = {"fsx": "0.3.2", "pjdfstest": "0.2.2"}
RUST = (1, 85)
"""The oldest Rust that pjdfstest is for."""


def all_of_them() -> Path:
    """A directory with ``fio``, ``fsx`` and ``pjdfstest``. Raises ToolError for what cannot be built."""
    versions = "-".join((FIO, *CRATES.values()))
    return tools.cached(tools.cache_dir() / "volume-judges" / versions, _all)


def _all(scratch: Path) -> Path:
    made = scratch / "made"
    made.mkdir()
    _fio(scratch, made / "fio")
    for crate, version in CRATES.items():
        _crate(scratch, crate, version, made / crate)
    return made


def _fio(scratch: Path, target: Path) -> None:
    """fio from Debian's source package: its binary there is not static."""
    tools.say(f"compiling fio {FIO} from Debian's source package (minutes, once)")
    own = scratch / "debian"
    own.mkdir()
    source = tools.debian_source("fio", own)
    if not source.name.endswith(f"-{FIO}"):
        raise tools.ToolError(f"this Debian has {source.name}: put its version into {__file__}")
    # For any processor: what compiles it is not always what runs it.
    tools.run(["./configure", "--build-static", "--disable-native"], cwd=source)
    tools.run(["make", f"-j{os.cpu_count() or 1}", "fio"], cwd=source)
    shutil.copy(source / "fio", target)


def _crate(scratch: Path, crate: str, version: str, target: Path) -> None:
    cargo = shutil.which("cargo")
    found = re.search(r"cargo (\d+)\.(\d+)", tools.run([cargo, "--version"])) if cargo else None
    if cargo is None or found is None or (int(found[1]), int(found[2])) < RUST:
        raise tools.ToolError(
            f"{crate} is a crate: install Rust {'.'.join(map(str, RUST))} or later, with cargo"
        )
    tools.say(f"building {crate} {version} (minutes, once)")
    kind = f"{os.uname().machine}-unknown-linux-gnu"
    words = ["install", "--quiet", "--locked", "--target", kind, "--root", os.fspath(scratch / crate)]
    # Build scripts are for this machine and must not be static, which naming the target sees to.
    flags = {"RUSTFLAGS": "-C target-feature=+crt-static", "CARGO_TARGET_DIR": os.fspath(scratch / "target")}
    tools.run([cargo, *words, f"{crate}@{version}"], env=flags)
    shutil.copy(scratch / crate / "bin" / crate, target)
