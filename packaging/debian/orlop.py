#!/usr/lib/orlop/bin/python3 -I
"""The command orlop."""

import sys

from orlop.cli.main import main

sys.exit(main())
