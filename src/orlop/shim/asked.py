"""What containerd's calls have in common, checked as it comes in."""

from __future__ import annotations

import re

from orlop.errors import InvalidArgument
from orlop.shim import places
from orlop.shim.model import Key
from orlop.ttrpc.server import METADATA

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,255}", re.ASCII)
"""A namespace of containerd's, and the id of a task or process in one."""

_LONGEST_PATH = 4096


def is_path(text: str) -> bool:
    """Whether it can be the absolute path of something."""
    return text.startswith("/") and "\0" not in text and len(text) <= _LONGEST_PATH


def key(namespace: str, name: str) -> Key:
    """A task by its names. Raises InvalidArgument."""
    for what, text in (("namespace", namespace), ("id", name)):
        if not NAME.fullmatch(text):
            raise InvalidArgument(f"{text[:80]!r} is not the {what} of a task")
    return namespace, name


def of_call(name: str) -> Key:
    """The task that the call is about which is being served: its namespace comes beside it."""
    return key(METADATA.get().get(places.NAMESPACE, ""), name)


def bundle(path: str) -> str:
    """containerd's directory for a task. Raises InvalidArgument."""
    if not is_path(path):
        raise InvalidArgument(f"the bundle {path[:200]!r} is not an absolute path")
    return path
