"""The wheel brings all that Orlop needs: installed outside of any checkout it runs a pod."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.lab.root import CHECKOUT, place_checkout
from tests.patience import PATIENCE

DIGESTS = """
from orlop.guestos import build, pythontree
print(build._recipe(), pythontree.agent_digest(pythontree.agent_sources()))
"""


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300 * PATIENCE, check=False
    )
    assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing that lies about in the checkout gets into it."""
    place = tmp_path_factory.mktemp("wheel")
    place_checkout(place / "source")
    command = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation")
    run(*command, "-w", place, place / "source")
    (made,) = place.glob("orlop-*.whl")
    return made


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment with the wheel in it, and with what it depends on from this one."""
    place = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", place)
    python = place / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # As a line of a .pth, this environment's own .pth files do not count: Orlop is the wheel's.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    return place / "bin"


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    listed = run("git", "-c", f"safe.directory={CHECKOUT}", "ls-files", "src/orlop", cwd=CHECKOUT)
    wanted = {name.removeprefix("src/") for name in listed.splitlines() if (CHECKOUT / name).exists()}
    assert not wanted - set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_builds_the_guest_of_the_checkout(commands: Path, tmp_path: Path) -> None:
    found = run(commands / "python", "-c", DIGESTS, cwd=tmp_path)
    assert found == run(sys.executable, "-c", DIGESTS, cwd=tmp_path)


def test_a_pod_runs_from_the_wheel_alone(commands: Path, tmp_path: Path) -> None:
    where = run(commands / "python", "-c", "import orlop; print(orlop.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(commands.parent)
    said = run(commands / "orlop", "demo", cwd=tmp_path)
    assert "done" in said, said
