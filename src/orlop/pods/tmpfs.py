"""Memory as a volume, which a container wishes for in its annotation: CRI has no words for it.

``tmpfs.orlop.io/mounts`` is a list in JSON: ``[{"path": "/tmp", "size": 67108864, "mode": 1023}]``, with
``"read_only"`` and ``"options"`` (nodev, noexec, nosuid) besides. All but the path have defaults.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from orlop.errors import InvalidArgument
from orlop.pods.requests import MountRequest
from orlop.sandbox.spec import MountOption, Tmpfs
from orlop.value import UNREADABLE, Value

ANNOTATION = "tmpfs.orlop.io/mounts"
MOST = 64


class TmpfsWish(Value, frozen=True, forbid_unknown_fields=True):
    """One of them. ``size`` is in bytes, 0 for the kernel's default."""

    path: str
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)] = 0o1777
    read_only: bool = False
    options: tuple[MountOption, ...] = ()


def among(mounts: Sequence[MountRequest], annotations: Mapping[str, str]) -> tuple[MountRequest, ...]:
    """A container's volumes with those of its annotation, each after what it lies in.

    Raises InvalidArgument.
    """
    text = annotations.get(ANNOTATION, "")
    if not text:
        return tuple(mounts)
    try:
        wishes = msgspec.json.decode(text, type=tuple[TmpfsWish, ...])
    except UNREADABLE as error:
        raise InvalidArgument(f"the annotation {ANNOTATION} cannot be understood: {error}") from error
    if len(wishes) > MOST:
        raise InvalidArgument(f"the annotation {ANNOTATION} has {len(wishes)} entries; {MOST} are allowed")
    wanted = [
        MountRequest(
            container_path=posixpath.normpath(one.path),
            tmpfs=Tmpfs(size=one.size, mode=one.mode),
            read_only=one.read_only,
            options=one.options,
        )
        for one in wishes
    ]
    return tuple(
        sorted((*mounts, *wanted), key=lambda one: posixpath.normpath(one.container_path).count("/"))
    )
