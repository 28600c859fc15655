#!/usr/lib/orlop/bin/python3 -I
"""The daemon orlopd."""

import sys

from orlop.daemon import main

sys.exit(main())
