"""Namespaces that callers name by path and that are the host's own: a VM must not be in them. Blocks.

Above all that of the network: a VM takes over what is in the one that it is given.
"""

from __future__ import annotations

import re
from pathlib import Path

from orlop.bundle.document import OciConfig
from orlop.errors import FailedPrecondition
from orlop.shim.placing import REMEDY

_NAMES = {"network": "net", "ipc": "ipc", "pid": "pid", "mount": "mnt"}
"""By their names in a document, those below /proc/PID/ns."""

_OF_A_VM = re.compile(r"/proc/\d{1,9}/ns/pid")
"""So a caller means those in a VM, whose process may be in the host's: see :func:`placing.namespaces`."""


def check(config: OciConfig, name: str) -> None:
    """Raise FailedPrecondition when the task ``name`` asks for one."""
    for namespace in (config.linux.namespaces or ()) if config.linux else ():
        if not _OF_A_VM.fullmatch(namespace.path):
            check_path(namespace.type, namespace.path, name)


def check_path(kind: str, path: str, name: str) -> None:
    """The same for one; "" is a new one, and what is not there is for others to say."""
    if not path or kind not in _NAMES:
        return
    try:
        own = Path(path).samefile(f"/proc/self/ns/{_NAMES[kind]}")
    except OSError:
        return
    if own:
        raise FailedPrecondition(
            f"task {name} asks for the host's {kind} namespace, which a VM does not share: {path} is that "
            f"one; {REMEDY}"
        )
