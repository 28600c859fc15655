"""A service of pods over doubles, for tests that need no other than the usual one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.pods.service import PodService
from tests.unit.pods_double import World, make_service


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def service(tmp_path: Path, world: World) -> AsyncIterator[PodService]:
    service, _ = make_service(tmp_path, world)
    await service.open()
    yield service
    await service.close()
