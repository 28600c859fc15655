"""The world of these tests: it needs root, and nothing but the kernel and its tools."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import needs_root
from tests.tenants.world import World, world

__all__ = ["needs_root"]


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world")) as one:
        yield one
