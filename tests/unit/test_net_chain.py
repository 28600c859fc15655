"""The order of a chain's plug-ins, and what a failing one does to the others."""

from __future__ import annotations

import pytest

from orlop.errors import NotUndone, Unavailable
from orlop.net.chain import Attachment, Chain
from orlop.net.conflist import NetworkList, PluginConfig
from orlop.net.plugins import Invocation


class Told(Chain):
    """Runs no plug-in, and lets those fail that it was told of."""

    def __init__(self, *failing: str) -> None:
        super().__init__((), 1)
        self.failing = failing
        self.ran: list[str] = []

    async def _execute(
        self, command: str, plugin: PluginConfig, attachment: Attachment, previous: dict[str, object] | None
    ) -> bytes:
        self.ran.append(f"{command} {plugin.type}")
        if plugin.type in self.failing:
            raise Unavailable(f"{plugin.type} is busy")
        return b"{}"


def attachment() -> Attachment:
    plugins = tuple(
        PluginConfig(type=kind, capabilities={}, document={"type": kind}) for kind in ("a", "b", "c")
    )
    return Attachment(
        network=NetworkList(name="pods", version="1.0.0", plugins=plugins),
        invocation=Invocation(container_id="p1", netns="/run/netns/p1", interface="eth0"),
    )


async def test_del_goes_on_past_those_that_fail_and_names_them_all() -> None:
    chain = Told("a", "c")
    with pytest.raises(NotUndone) as caught:
        await chain.delete(attachment())
    assert chain.ran == ["DEL c", "DEL b", "DEL a"]
    assert "c is busy" in str(caught.value) and "a is busy" in str(caught.value)
    chain = Told()
    await chain.delete(attachment())
    assert chain.ran == ["DEL c", "DEL b", "DEL a"]
