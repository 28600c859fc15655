"""The node of these tests."""

from __future__ import annotations

from tests.e2e.conftest import needs_root, registry, shared_node

__all__ = ["needs_root", "registry", "shared_node"]
