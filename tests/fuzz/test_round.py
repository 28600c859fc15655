"""A short round of each target, the same inputs every time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz import kit
from tests.fuzz.inputs import edited

EXAMPLES = 60
TARGETS = kit.load()


@pytest.fixture(scope="module", autouse=True)
def own_loop():  # type: ignore[no-untyped-def]
    yield
    kit.close()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_inputs_near_the_seeds_are_understood_or_refused(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        target.once(seed)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(edited(target.seeds))
    def near(data: bytes) -> None:
        target.once(data)

    near()
