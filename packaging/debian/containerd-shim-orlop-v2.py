#!/usr/lib/orlop/bin/python3 -I
"""The command containerd-shim-orlop-v2."""

import sys

from orlop.shim.command.main import main

sys.exit(main())
