"""``orlop node switch`` against a real daemon: it ends the pods of the runtime that is left."""

from __future__ import annotations

from pathlib import Path

from orlop.cli.node import switch
from tests.node import BUSYBOX, node
from tests.patience import PATIENCE


async def test_the_pods_of_a_runtime_are_ended(registry: str, tmp_path: Path) -> None:
    with node(registry, handler="process") as one:
        endpoint = f"unix://{one.socket}"
        await switch.ready(endpoint, timeout=120 * PATIENCE)
        for _ in range(2):
            one.run(BUSYBOX, "sleep", "600")
        assert await switch.end_pods(endpoint) == 2
        assert not one.json("pods")["items"]
        assert await switch.end_pods(endpoint) == 0
    assert await switch.end_pods(f"unix://{tmp_path}/nobody.sock") is None
