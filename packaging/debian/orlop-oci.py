#!/usr/lib/orlop/bin/python3 -IS
"""The command orlop-oci, which starts for each call: it does not look for what else is installed."""

import sys

sys.path.append("/usr/lib/orlop/lib/python3.11/site-packages")

from orlop.oci.command.main import command

command()
