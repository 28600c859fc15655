"""The registry of these tests."""

from __future__ import annotations

from tests.e2e.conftest import needs_root, registry

__all__ = ["needs_root", "registry"]
