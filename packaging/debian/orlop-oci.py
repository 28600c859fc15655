#!/usr/lib/orlop/bin/python3 -I
"""The command orlop-oci."""

import sys

from orlop.oci.command.main import main

sys.exit(main())
