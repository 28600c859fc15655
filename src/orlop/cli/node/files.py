"""The files that a node gets, as this package brings them."""

from __future__ import annotations

from pathlib import Path

NETWORK = "10-orlop.conflist"
CONFIGURATION = "config.toml"
UNITS = ("orlopd.service", "orlop-guest.service", "orlop-switch.service")


def path(name: str) -> Path:
    """Where a file is."""
    return Path(__file__).with_name("data") / name
