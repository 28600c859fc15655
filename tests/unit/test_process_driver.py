"""What the handler ``process`` says of itself while one of its tools cannot be used."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from orlop.config import Config, NetworkConfig
from orlop.errors import NotFound, Unavailable
from orlop.host.process import ProcessFailed
from orlop.net.network import PodNetwork
from orlop.sandbox.process.container import Tools
from orlop.sandbox.process.driver import ProcessDriver
from orlop.sandbox.process.runtime import Runtime
from orlop.sandbox.spec import PodSpec

POD = PodSpec(id="p" * 64, name="p", uid="u", namespace="n")


@pytest.mark.parametrize(
    "failure",
    [
        ProcessFailed("conmon", 126, "cannot be started: Resource temporarily unavailable"),
        OSError(errno.EMFILE, "Too many open files"),
        NotFound("conmon is not installed: install the package conmon"),
    ],
    ids=["fork", "open", "missing"],
)
async def test_a_tool_that_could_not_be_used_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """And until it is found no pod is said to have ended: another try may find it."""
    config = Config(
        root=str(tmp_path / "root"),
        state=str(tmp_path / "state"),
        network=NetworkConfig(conf_dir=str(tmp_path)),
    )
    driver = ProcessDriver(config, PodNetwork(config.network, tmp_path / "net"))
    runtime = Runtime(name="runc", program="runc", version="1", state=tmp_path, systemd=False)
    outcomes: list[Exception | Tools] = [Tools(runtime=runtime, conmon="conmon"), failure, failure, failure]

    async def find() -> Tools:
        outcome = outcomes.pop()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(driver, "_find_tools", find)
    await driver.open()
    with pytest.raises(Unavailable, match="the handler process cannot be used: "):
        await driver.recover(POD, ())
    assert str(failure) in await driver.ready()
    with pytest.raises(NotFound, match="nothing of it is left"):
        await driver.recover(POD, ())
    assert await driver.ready() == ""
    assert outcomes == []
