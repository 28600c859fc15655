"""setup.sh where the network is missing: it must say so, soon, and change nothing."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]


def test_a_machine_without_a_network_is_told_before_apt_is_asked(tmp_path: Path) -> None:
    for name, body in (("dpkg-query", "exit 1"), ("apt-get", "touch $(dirname $0)/asked")):
        stub = tmp_path / name
        stub.write_text(f"#!/bin/sh\n{body}\n")
        stub.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    started = time.monotonic()
    done = subprocess.run(
        ["unshare", "--net", ROOT / "setup.sh", "--no-demo"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120 * PATIENCE,
    )
    assert done.returncode == 1
    assert "none of apt's sources answers" in done.stderr and "http" in done.stderr
    assert time.monotonic() - started < 90 * PATIENCE
    assert not (tmp_path / "asked").exists()
