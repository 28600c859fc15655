"""What a private daemon borrows of the machine's own, so that it need not build it, and gives back."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from orlop.cli.guest import cache_of
from orlop.config import Config
from orlop.host import sparse
from orlop.linux.removal import remove_tree


def _hypervisor_dir(config: Config) -> Path:
    return config.root_dir / "hypervisor"


def borrow(base: Config, root: Path) -> None:
    """Take over what the machine's own daemon has made: guest image, accelerator's probe, template.

    The first is linked to, the others are copied: a daemon throws away templates that do not fit it.
    """
    root.mkdir(parents=True, exist_ok=True)
    guest = root / "guest"
    if not guest.is_symlink():
        guest.symlink_to(cache_of(base))
    source = _hypervisor_dir(base)
    if source.is_dir() and not (root / "hypervisor").exists():
        _copy(source, root / "hypervisor")


def give_back(base: Config, root: Path) -> None:
    """Let the machine's own daemon have a template that was built here, if it has none at all."""
    source, target = root / "hypervisor", _hypervisor_dir(base)
    kept = {path.name for path in target.glob("template-*")} if target.is_dir() else set()
    made = {path.name for path in source.glob("template-*")} if source.is_dir() else set()
    if not made or made <= kept:
        return
    aside = target.with_name(f"{target.name}.{os.getpid()}")
    _copy(source, aside)
    if target.is_dir():
        target.rename(target.with_name(f"{target.name}.old"))
    aside.rename(target)
    remove_tree(target.with_name(f"{target.name}.old"))


def _copy(source: Path, target: Path) -> None:
    """Copy the finished files of a hypervisor's directory; memory images keep their holes."""
    target.mkdir(parents=True, exist_ok=True)
    names = [
        path
        for path in source.iterdir()
        if path.name == "accelerator.json" or path.name.startswith("template-")
    ]
    for path in names:
        with contextlib.suppress(FileNotFoundError):  # another daemon has just thrown it away
            _copy_one(path, target / path.name)


def _copy_one(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            _copy_one(path, target / path.name)
        return
    with source.open("rb") as reading, target.open("wb") as writing:
        writing.truncate(os.fstat(reading.fileno()).st_size)
        for begin, end in sparse.parts(reading.fileno()):
            reading.seek(begin)
            writing.seek(begin)
            left = end - begin
            while left and (chunk := reading.read(min(1 << 20, left))):
                left -= writing.write(chunk)
    shutil.copystat(source, target)
