"""The fixtures of the end-to-end tests: a node with pods of both handlers, and a registry. Needs root."""

from __future__ import annotations

from tests.e2e.conftest import needs_root, pytest_sessionfinish, registry, shared_node

__all__ = ["needs_root", "pytest_sessionfinish", "registry", "shared_node"]
