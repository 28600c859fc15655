"""The files a jail shows: a program with its libraries and data, copied once, and nothing else.

Copies, since the host's own directories hold much more, and so that a package that is upgraded meanwhile
pulls nothing from under a running machine. Every machine of one program shares the copy and its page cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from orlop.errors import FailedPrecondition
from orlop.host import process, threads
from orlop.linux.removal import remove_tree

_PREFIX = "jail-"
# Counts changes of what a tree is that its files do not show.
_RECIPE = 1
_MAKING = threading.Lock()
_LIBRARY = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x", re.MULTILINE)


class TreeContents(msgspec.Struct, frozen=True, kw_only=True):
    """What goes into a tree.

    ``objects`` are programs and libraries, which come with all that they are linked with, ``files`` are
    copied as they are; both lie in the tree where they lie on the host. ``texts`` are files by their place
    and content, ``links`` symbolic links by their place and target. ``directories`` are empty, to be mounted
    on.
    """

    objects: tuple[Path, ...]
    files: tuple[Path, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    directories: tuple[str, ...] = ()


async def prepare(root: Path, contents: TreeContents) -> Path:
    """The tree of ``contents`` below ``root``, made now unless it is there; older trees are removed.

    Raises FailedPrecondition when a library is missing, OSError.
    """
    objects = dict.fromkeys((*contents.objects, *await _libraries(contents.objects)))
    files = (*objects, *contents.files)
    return await threads.call(_prepare, root, contents, files)


async def _libraries(objects: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in objects:
        answer = await process.run(["ldd", path], check=False, timeout=30)
        text = answer.stdout.decode(errors="replace")
        if missing := re.search(r"^\s*(\S+) => not found", text, re.MULTILINE):
            raise FailedPrecondition(f"{path} cannot run: its library {missing[1]} is not installed")
        found += [Path(name) for name in _LIBRARY.findall(text)]
    return found


def _prepare(root: Path, contents: TreeContents, files: Sequence[Path]) -> Path:
    target = root / f"{_PREFIX}{_key(contents, files)[:24]}"
    # Several VMs begin at once, and the first has to make it; each would take the other's for an older one.
    with _MAKING:
        return target if target.is_dir() else _make(root, target, contents, files)


def _make(root: Path, target: Path, contents: TreeContents, files: Sequence[Path]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    work = root / f"{_PREFIX}{secrets.token_hex(4)}.new"
    work.mkdir(mode=0o755)
    _fill(work, contents, files)
    for old in root.glob(f"{_PREFIX}*"):
        if old != work:
            # A machine that runs has opened what it needs.
            remove_tree(old)
    work.rename(target)
    return target


def _fill(work: Path, contents: TreeContents, files: Sequence[Path]) -> None:
    for path in files:
        copy = _place(work, os.fspath(path))
        # Through links: what is looked up by a name has to be there by that name.
        shutil.copyfile(path, copy)
        copy.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
    for name, text in contents.texts:
        _place(work, name).write_text(text, encoding="utf-8")
    for name, target in contents.links:
        _place(work, name).symlink_to(target)
    for name in contents.directories:
        _place(work, name).mkdir(mode=0o755, exist_ok=True)


def _place(work: Path, name: str) -> Path:
    path = work / name.lstrip("/")
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    return path


def _key(contents: TreeContents, files: Sequence[Path]) -> str:
    digest = hashlib.sha256(f"{_RECIPE} {contents!r}".encode())
    for path in files:
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ino}\n".encode())
    return digest.hexdigest()
