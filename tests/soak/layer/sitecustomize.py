"""Loaded by the interpreter of a daemon under test, which has this directory on its path."""

import os
import sys

if os.environ.get("ORLOP_SOAK_FAULTS") and "orlop.daemon" in sys.orig_argv:
    from tests.soak import faults

    faults.install(os.environ["ORLOP_SOAK_FAULTS"])
