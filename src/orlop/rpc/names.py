"""The name of a call in Python, for the server and for its clients."""

from __future__ import annotations

import re

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def method_name(rpc: str) -> str:
    """``RunPodSandbox`` as ``run_pod_sandbox``."""
    return _WORD.sub("_", rpc).lower()
