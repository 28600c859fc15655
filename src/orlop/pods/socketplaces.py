"""Volumes that are there for sockets, as annotations of a pod or a container say: CRI has no words for it.

``volumes.orlop.io/sockets`` names paths inside the containers: ``/run/app, /var/run/agent``. What a container
binds in such a volume, other containers of its pod and the host connect to, in a VM as well, where a
directory that is shared with the host cannot carry it. A container that has no volume at a path goes without.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

import msgspec

from orlop.errors import InvalidArgument
from orlop.sandbox.spec import Mount

ANNOTATION = "volumes.orlop.io/sockets"
MOST = 64


def marked(mounts: Sequence[Mount], annotations: Mapping[str, str]) -> tuple[Mount, ...]:
    """The volumes of a container, those among them marked that are for sockets. Raises InvalidArgument."""
    places = _places(annotations.get(ANNOTATION, ""))
    return tuple(
        msgspec.structs.replace(one, sockets=True)
        if one.host_path and _normal(one.container_path) in places
        else one
        for one in mounts
    )


def _places(text: str) -> frozenset[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if len(words) > MOST:
        raise InvalidArgument(f"the annotation {ANNOTATION} has {len(words)} entries; {MOST} are allowed")
    for word in words:
        if not posixpath.isabs(word):
            raise InvalidArgument(
                f"the annotation {ANNOTATION} names {word[:80]!r}, and must name absolute paths of volumes "
                "in the container, such as /run/app"
            )
    return frozenset(map(_normal, words))


def _normal(path: str) -> str:
    # POSIX lets two slashes at the beginning mean something else, and normpath keeps them.
    return posixpath.normpath("/" + path.lstrip("/"))
