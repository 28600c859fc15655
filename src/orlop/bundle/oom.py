"""How a bundle says that memory ended its container: as conmon says it to who called that."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)


def note(bundle: str) -> None:
    """Leave the file ``oom`` in the bundle. Blocks.

    podman and CRI-O look for it; conmon would look at the container's control group on the host, which does
    not know what the guest does.
    """
    try:
        Path(bundle, "oom").touch(mode=0o600)
    except OSError as error:
        log.warning("%s cannot be told that memory has ended its container: %s", bundle, error.strerror)
