"""These tests mount."""

from __future__ import annotations

from tests.e2e.conftest import needs_root

__all__ = ["needs_root"]
