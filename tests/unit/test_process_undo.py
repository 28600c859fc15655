"""What a pod of processes had in common is taken back in an order that another try can go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from orlop.errors import NotUndone, Unavailable
from orlop.sandbox.process import podns
from orlop.sandbox.process import sandbox as pods
from orlop.sandbox.process.layout import Layout


class Network:
    def __init__(self, *, failing: bool) -> None:
        self.failing = failing

    async def detach(self, pod_id: str, netns: Path) -> None:
        if self.failing:
            raise Unavailable("the plug-in was killed at work")


@pytest.mark.parametrize("failing", [False, True])
async def test_a_namespace_stays_until_the_plug_ins_have_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    """One that is asked again finds there by which addresses it masqueraded."""
    removed: set[str] = set()
    monkeypatch.setattr(podns.namespaces, "remove", lambda path: removed.add(path.name))
    monkeypatch.setattr(podns.mounts, "unmount", lambda path: None)
    monkeypatch.setattr(pods.podgroup, "made_by_us", lambda group, pod_id: False)
    paths = Layout(tmp_path / "state", tmp_path / "root").pod("p" * 64)
    paths.create(None)
    try:
        await pods.discard(cast("Any", None), cast("Any", Network(failing=failing)), paths, "p" * 64, "/x")
    except NotUndone:
        assert failing and paths.state.exists()
    else:
        assert not failing and not paths.state.exists()
    assert ("net" in removed) is not failing
    assert removed >= {"uts", "ipc", "user", "pid"}
