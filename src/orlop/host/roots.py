"""Another root directory than our own: that of the node, for who runs in a pod of it.

``/proc/1/root`` is the node's for a pod that sees the node's processes, with all that is mounted there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

OWN: Final = Path("/")


def below(root: Path, path: Path) -> Path:
    """How to find, from here, what whoever has that root calls ``path``, which is absolute."""
    return path if root == OWN else root / path.relative_to("/")


def entering(root: Path) -> tuple[str, ...]:
    """The words before a command that is to have that root."""
    return () if root == OWN else ("chroot", os.fspath(root))
