"""``orlop guest build`` and ``orlop guest list``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from orlop.cli import output
from orlop.cli.problems import CliError
from orlop.cli.units import show_age, show_size
from orlop.config import Config, load
from orlop.errors import NotFound, OrlopError
from orlop.guestos import build as guestos
from orlop.linux.removal import remove_tree


def cache_of(config: Config) -> Path:
    """Where the guest images of this configuration are."""
    return config.root_dir / "guest"


async def build_command(path: Path | None, *, force: bool) -> None:
    """Build the guest image, with a line per step."""
    config = load(path)
    cache = cache_of(config)
    started = time.monotonic()
    if force:
        _forget_current(config, cache)
    if sys.stderr.isatty():
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=output.errors(), transient=True) as bar:
            task = bar.add_task("Building the guest image", total=None)
            found = await guestos.build(
                cache, progress=lambda line: bar.update(task, description=f"Guest image: {line}")
            )
    else:
        found = await guestos.build(cache, progress=lambda line: print(f"  {line}", file=sys.stderr))
    sizes = ", ".join(
        f"{path.name} {show_size(path.stat().st_size)}" for path in (found.kernel, found.initrd, found.image)
    )
    took = time.monotonic() - started
    print(f"guest image {found.digest[:12]} in {found.image.parent} ({sizes}), {took:.1f} s")


def _forget_current(config: Config, cache: Path) -> None:
    try:
        present = guestos.find(config.vm.guest, cache)
    except OrlopError:
        return
    if present.image.parent.parent == cache:
        remove_tree(present.image.parent)


async def list_command(path: Path | None) -> None:
    """The guest images in the cache, the one in use marked."""
    config = load(path)
    cache = cache_of(config)
    try:
        current = guestos.find(config.vm.guest, cache)
    except NotFound as error:
        raise CliError(str(error)) from error
    rows = []
    directories = {
        current.image.parent,
        *(one for one in cache.glob("*") if (one / "manifest.json").exists()),
    }
    for directory in sorted(directories, key=lambda one: -one.stat().st_mtime):
        if directory.is_symlink():
            continue
        files = [one for one in directory.iterdir() if one.is_file()]
        rows.append(
            (
                "*" if directory == current.image.parent else "",
                current.digest[:12] if directory == current.image.parent else directory.name[:12],
                show_size(sum(one.stat().st_size for one in files)),
                show_age(int(directory.stat().st_mtime * 1e9)),
                str(directory),
            )
        )
    output.table(("USED", "DIGEST", "SIZE", "BUILT", "DIRECTORY"), rows)
