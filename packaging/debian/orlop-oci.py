#!/usr/lib/orlop/bin/python3 -I
"""The command orlop-oci."""

from orlop.oci.command.main import command

command()
