"""A cluster whose nodes have named volumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.room import Cluster
from tests.csi_life import room, sidecars
from tests.e2e.conftest import needs_root

__all__ = ["needs_root"]


@pytest.fixture(scope="session")
def storing() -> Iterator[Cluster]:
    """Two nodes with the manifests that users apply, and what these say runs."""
    built = room.prepared()
    with room.storing(built, sidecars.storage(built), Path("build/csi-life")) as one:
        yield one
