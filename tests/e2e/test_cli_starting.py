"""`orlop run` where no daemon runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer

from orlop.cli import starting
from orlop.cli.demo import lending, privatedaemon
from orlop.cli.problems import CliError
from orlop.client.node import connect
from orlop.config import load
from tests.node import scratch_directory, settings_for


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Somebody who says yes; the questions that were asked."""
    asked: list[str] = []

    def confirm(text: str, *, err: bool) -> bool:
        asked.append(text)
        return True

    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(typer, "confirm", confirm)
    monkeypatch.setattr(starting, "_UNITS", ())
    return asked


async def test_one_runs_as_long_as_the_command(
    registry: str, at_a_terminal: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch_directory("orlop-start-") as scratch:
        settings = settings_for(scratch, registry, handler="process")
        file = privatedaemon.write_files(settings)
        try:
            monkeypatch.setattr(starting, "load", lambda: load(file))
            monkeypatch.setattr(starting, "COMMAND", (*starting.COMMAND, "--config", file))
            with pytest.raises(CliError, match="no daemon runs"):
                async with starting.offered(settings.socket, lasting=True):
                    pass
            async with starting.offered(settings.socket, lasting=False), connect(settings.socket) as node:
                assert await node.pods() == []
            assert len(at_a_terminal) == 1 and not Path(settings.socket).exists()
            file.write_text("socket = 5\n")
            monkeypatch.setattr(starting, "load", lambda: load(scratch / "none"))
            with pytest.raises(CliError, match="ended at once"):
                await starting.listening(starting.COMMAND, settings.socket, scratch / "log")
        finally:
            lending.give_back(settings.base, settings.root)
