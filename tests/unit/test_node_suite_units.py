"""What stands for systemd where Kubernetes' node suite restarts its kubelet: with real processes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.node_e2e import units
from tests.patience import PATIENCE

NAME = "kubelet-20261122.service"
PATTERN = "*kubelet*"
LIMIT = 60.0 * PATIENCE


def _wait(what: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.02)


class Suite:
    """The programs as the node suite calls them, and a unit that writes a line when it is up."""

    def __init__(self, directory: Path) -> None:
        self.kept, self.log = directory / "units", directory / "log"
        self.programs = units.install(directory)

    def call(self, *argv: str) -> str:
        """A program's output; raises when it fails."""
        return subprocess.run(
            [self.programs / argv[0], *argv[1:]], check=True, capture_output=True, text=True
        ).stdout

    def control(self, *argv: str) -> str:
        """``sudo systemctl``, which finds the one that stands for it by the search path."""
        return self.call("sudo", str(self.programs / "systemctl"), *argv)

    def run(self, script: str) -> None:
        """Start the unit."""
        options = ["-p", "Delegate=true", "-p", f"StandardError=append:{self.log}", f"--unit={NAME}"]
        self.call("systemd-run", *options, "--slice=runtime.slice", "--remain-after-exit", "sh", "-c", script)

    def said(self) -> list[str]:
        """The unit's lines."""
        return self.log.read_text().split() if self.log.exists() else []

    def pid(self) -> int:
        """The unit's process."""
        return int(json.loads((self.kept / NAME).read_text())["pid"])

    def listed(self) -> bool:
        """Whether the unit is among those that run."""
        return NAME in self.control("list-units", PATTERN, "--state=running")


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    one = Suite(tmp_path)
    yield one
    for file in one.kept.iterdir():
        units.Unit(file).stop()


def test_a_unit_outlives_its_starter_and_restarts_with_the_same_command(suite: Suite) -> None:
    suite.run("echo up$$$$; exec sleep 1000")
    _wait(lambda: len(suite.said()) == 1)
    first = suite.pid()
    assert suite.said() == [f"up{first}"], "a doubled dollar is one, as systemd has it"
    assert suite.listed()
    suite.control("reset-failed", NAME.removesuffix(".service"))
    suite.control("restart", NAME.removesuffix(".service"))
    _wait(lambda: len(suite.said()) == 2)
    assert suite.said() == [f"up{first}", f"up{suite.pid()}"], "the log is appended to"
    assert suite.pid() != first


def test_a_killed_unit_is_not_running_but_known(suite: Suite) -> None:
    suite.run("exec sleep 1000")
    assert suite.listed()
    suite.control("kill", NAME)
    _wait(lambda: not suite.listed())
    assert NAME in suite.control("list-units", PATTERN)
    suite.control("restart", NAME)
    assert suite.listed()
    suite.control("stop", NAME)
    assert not suite.listed()


def test_a_unit_that_does_not_exist_is_an_error(suite: Suite) -> None:
    assert suite.control("list-units", PATTERN) == ""
    with pytest.raises(subprocess.CalledProcessError, match="exit status 5"):
        suite.control("restart", "kubelet-other")
