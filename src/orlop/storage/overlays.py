"""Overlays that somebody else has mounted, put together anew with other owners.

An overlay cannot map users as other file systems can, but what it is made of can: each of its directories
is mounted with mapped users, and an overlay of the same directories over that. What is written goes to the
same upper directory. Files that the first overlay has looked at before may seem unchanged there, as the
kernel says of two overlays with one upper directory; who made it looks when the container has ended.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from orlop.host import mounts
from orlop.linux import syscalls as sys
from orlop.value import Value

_WORK = "orlop-work"
"""Beside the upper directory, with which it goes: each overlay has a work directory of its own."""

_KEPT = ("redirect_dir", "metacopy", "userxattr", "xino")
_LAYER = re.compile(r"(?:\\.|[^:\\])+")


class Overlay(Value, frozen=True):
    """What an overlay is made of: ``lower`` with the top first, ``upper`` "" if it is read-only."""

    lower: tuple[str, ...]
    upper: str = ""
    options: tuple[str, ...] = ()


def find(directory: Path) -> Overlay | None:
    """The overlay whose root ``directory`` is, if it is one that can be put together anew."""
    return _find(os.fspath(directory), mounts.options_by_point("overlay"))


def _find(directory: str, known: Mapping[str, list[str]]) -> Overlay | None:
    """The same among the overlays of this machine."""
    found = known.get(directory)
    if found is None:
        return None
    lower: list[str] = []
    upper = ""
    for option in found:
        name, _, value = option.partition("=")
        if name in ("lowerdir", "lowerdir+"):
            lower += [_plain(layer) for layer in _LAYER.findall(value)]
        elif name == "upperdir":
            upper = _plain(value)
        elif name == "datadir+":
            return None
    places = (*lower, upper) if upper else lower
    if not lower or not all(os.path.isabs(place) for place in places):  # noqa: PTH117
        return None
    kept = tuple(option for option in found if option.partition("=")[0] in _KEPT)
    return _flat(Overlay(lower=tuple(lower), upper=upper, options=kept), known)


def _flat(overlay: Overlay, known: Mapping[str, list[str]]) -> Overlay:
    """With the layers that are overlays themselves, whose users cannot be mapped, as what those are made of.

    The kernel stacks no more than two.
    """
    lower: list[str] = []
    options = overlay.options
    for layer in overlay.lower:
        below = _find(layer, known)
        if below is None or _without_redirect(below.options) != _without_redirect(options):
            lower.append(layer)
            continue
        lower += (below.upper, *below.lower) if below.upper else below.lower
        if below.options != options and not any(one.startswith("redirect_dir=") for one in options):
            # Names that the lower one has moved are found, and none is written down in the upper one.
            options = (*options, "redirect_dir=follow")
    return Overlay(lower=tuple(lower), upper=overlay.upper, options=options)


def _without_redirect(options: tuple[str, ...]) -> list[str]:
    return sorted(one for one in options if not one.startswith("redirect_dir="))


@contextmanager
def anew(overlay: Overlay, place: Path, userns: Path, owner: int) -> Iterator[Path]:
    """The same overlay with its users mapped to those of ``userns``, until the block ends.

    ``place`` is a directory to be made for that, and is gone afterwards; ``owner`` is who is root in
    ``userns``. Raises OSError.
    """
    place.mkdir(mode=0o700)
    with ExitStack() as stack:
        stack.callback(place.rmdir)
        lower = [
            _mapped(Path(layer), place / str(number), userns, stack)
            for number, layer in enumerate(overlay.lower)
        ]
        options = [f"lowerdir={':'.join(_short(layer, stack) for layer in lower)}"]
        if overlay.upper:
            upper = Path(overlay.upper)
            (upper.parent / _WORK).mkdir(mode=0o700, exist_ok=True)
            # Upper and work directory have to be on one mount.
            beside = _mapped(upper.parent, place / "upper", userns, stack)
            options += [
                f"upperdir={_short(beside / upper.name, stack)}",
                f"workdir={_short(beside / _WORK, stack)}",
            ]
            options.append("index=off")
        target = _point(place / "root", stack)
        flags = 0 if overlay.upper else sys.MS_RDONLY
        text = ",".join((*options, *overlay.options))
        # What the overlay makes for itself has an owner, who must be one of the mapped users.
        mounts.as_owner(owner, lambda: mounts.mount("overlay", target, "overlay", flags=flags, options=text))
        yield target


def _mapped(source: Path, point: Path, userns: Path, stack: ExitStack) -> Path:
    mounts.bind(source, _point(point, stack), userns=userns)
    return point


def _point(point: Path, stack: ExitStack) -> Path:
    point.mkdir()
    stack.callback(point.rmdir)
    stack.callback(mounts.unmount, point)
    return point


def _short(path: Path, stack: ExitStack) -> str:
    """A path for the options of a mount, which have to fit one page."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return f"/proc/self/fd/{descriptor}"


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
