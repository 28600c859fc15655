"""What a private daemon borrows of the machine's own, so that it need not build it, and gives back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
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
    made = _templates(source)
    if not made or made <= _templates(target):
        return
    with _alone(target.parent):
        if made <= _templates(target):
            return
        # Of no process's name: nodes of a test have process ids of their own, which are the same.
        scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
        try:
            _copy(source, scratch / "new")
            if target.is_dir():
                target.rename(scratch / "old")
            (scratch / "new").rename(target)
        finally:
            remove_tree(scratch)


def _templates(place: Path) -> set[str]:
    return {path.name for path in place.glob("template-*")} if place.is_dir() else set()


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other daemons that give back to the same machine waiting."""
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


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
