"""The cluster of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.room import Cluster, cluster
from tests.e2e.conftest import needs_root

__all__ = ["needs_root"]


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """Two nodes."""
    with cluster(nodes=2, reports=Path("build/cluster/test")) as one:
        yield one
