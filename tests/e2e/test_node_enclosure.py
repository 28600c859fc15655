"""The enclosure of a node suite's run: it ends without a trace, also when its owner is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.node_e2e import enclosure
from tests.patience import PATIENCE

LIMIT = 60.0 * PATIENCE
OWNER = """
import sys
from pathlib import Path
from tests.node_e2e import enclosure
with enclosure.scratch() as directory:
    print(directory, flush=True)
    script = 'mount -t tmpfs held "$0/held"; (sleep 1000 & exec setsid sleep 1001) & echo up; exec sleep 1002'
    (directory / "held").mkdir()
    sys.exit(enclosure.run(directory, ["sh", "-c", script, str(directory)], Path(sys.argv[1]), 2))
"""


def _wait(what: Callable[[], bool], said: Callable[[], str]) -> None:
    limit = time.monotonic() + LIMIT
    while not what():
        assert time.monotonic() < limit, said()
        time.sleep(0.1)


def _groups(name: str) -> list[Path]:
    return [one.group(name) for one in enclosure.hierarchies() if one.group(name).exists()]


def _lives(pid: str) -> bool:
    """Whether a process is there that its parent need not only bury."""
    try:
        return Path("/proc", pid, "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_nothing_stays_of_a_run_whose_owner_ends(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    # As from a terminal: what a shell starts in the background ignores interrupts.
    command = ["env", "--default-signal=INT", sys.executable, "-c", OWNER, log]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert owner.stdout is not None
    directory = Path(owner.stdout.readline().strip())
    _wait(lambda: log.exists() and "up" in log.read_text(), log.read_text)
    groups = _groups(directory.name)
    assert groups
    inside = {pid for group in groups for pid in (group / "cgroup.procs").read_text().split()}
    assert len(inside) >= 4
    owner.send_signal(number)
    owner.wait(LIMIT)
    _wait(
        lambda: not directory.exists() and not _groups(directory.name),
        lambda: f"left: {directory if directory.exists() else ''} {_groups(directory.name)}",
    )
    _wait(lambda: not any(map(_lives, inside)), lambda: f"of {inside} some live")
    assert directory.name not in Path("/proc/self/mountinfo").read_text()
