"""Which transparent huge pages a process may have."""

from __future__ import annotations

import subprocess
import sys

_SAYS = """
import ctypes
from orlop.linux import syscalls
syscalls.forbid_unasked_huge_pages()
print(ctypes.CDLL(None).prctl(42, 0, 0, 0, 0))
"""


def test_those_that_are_asked_for_stay_allowed() -> None:
    done = subprocess.run([sys.executable, "-c", _SAYS], capture_output=True, text=True, check=True)
    # PR_GET_THP_DISABLE: off but where advised, or as before on an older kernel; never wholly off.
    assert int(done.stdout) in (0, 3)
