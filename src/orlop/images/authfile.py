"""Where credentials for registries are kept: the files of containers-auth.json(5), which podman, skopeo and
docker share.

What the helpers of docker-credential-* keep is left to skopeo, which calls them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from orlop.errors import InvalidArgument

_DOCKER = ("docker.io", "index.docker.io", "registry-1.docker.io")


def places() -> tuple[Path, ...]:
    """The files that are looked at, the first of which is written to."""
    if chosen := os.environ.get("REGISTRY_AUTH_FILE", ""):
        return (Path(chosen),)
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    first = Path(runtime) / "containers" if runtime else Path(f"/run/containers/{os.geteuid()}")
    home = Path(os.environ.get("HOME", "") or "/root")
    return (first / "auth.json", home / ".docker" / "config.json")


def read(path: Path) -> dict[str, Any]:
    """What a file holds; nothing when it is not there. Raises InvalidArgument for a damaged one."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"the credentials file {path} cannot be read: {error}") from error
    return document if isinstance(document, dict) else {}


def merged() -> dict[str, Any]:
    """All of the usual files as one; what the first of them says comes first."""
    auths: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for path in reversed(places()):
        document = read(path)
        others |= document
        found = document.get("auths")
        auths |= found if isinstance(found, dict) else {}
    return {**others, "auths": auths} if others else {}


def entry(document: dict[str, Any], repository: str) -> dict[str, str]:
    """What is known for a repository (``docker.io/library/busybox``), or for what it lies in."""
    auths = document.get("auths")
    if not isinstance(auths, dict):
        return {}
    place = repository
    while place:
        if isinstance(found := auths.get(place), dict):
            return _texts(found)
        place = place.rpartition("/")[0]
    domain = repository.partition("/")[0]
    for key, found in auths.items():
        # docker writes addresses, and its own registry's in its own way.
        host = key.partition("://")[2].partition("/")[0] or key
        if isinstance(found, dict) and (host == domain or (host in _DOCKER and domain in _DOCKER)):
            return _texts(found)
    return {}


def _texts(found: dict[str, Any]) -> dict[str, str]:
    return {key: value for key, value in found.items() if isinstance(value, str) and value}
