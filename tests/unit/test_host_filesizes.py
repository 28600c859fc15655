"""The bound on how large a file another process may make."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.host import filesizes

MIB = 1 << 20


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A shell that does what it is told, and ignores SIGXFSZ as Python does."""
    with subprocess.Popen(
        ["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path, restore_signals=False
    ) as shell:
        yield shell
        assert shell.stdin is not None
        shell.stdin.close()
        shell.wait()


def written(child: subprocess.Popen[bytes], size: int) -> bool:
    """Whether it can make a file of ``size`` bytes."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(f"truncate -s {size} file 2>/dev/null; echo $?\n".encode())
    child.stdin.flush()
    return child.stdout.readline() == b"0\n"


def test_no_file_becomes_longer_than_the_bound(child: subprocess.Popen[bytes]) -> None:
    assert written(child, 100 * MIB)
    filesizes.bound(child.pid, 2 * MIB)
    assert written(child, 2 * MIB)
    assert not written(child, 2 * MIB + 1)
    assert child.poll() is None


def test_it_is_raised_and_never_lowered(child: subprocess.Popen[bytes]) -> None:
    filesizes.bound(child.pid, 2 * MIB)
    filesizes.allow(child.pid, 8 * MIB)
    filesizes.allow(child.pid, 4 * MIB)
    assert written(child, 8 * MIB)
    assert not written(child, 9 * MIB)
    filesizes.unbound(child.pid)
    filesizes.allow(child.pid, 4 * MIB)
    assert written(child, 100 * MIB)


def test_a_hard_limit_of_the_host_stays(child: subprocess.Popen[bytes]) -> None:
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (4 * MIB, 4 * MIB))
    filesizes.bound(child.pid, 2 * MIB)
    filesizes.allow(child.pid, 8 * MIB)
    assert written(child, 4 * MIB)
    filesizes.unbound(child.pid)
    assert resource.prlimit(child.pid, resource.RLIMIT_FSIZE) == (4 * MIB, 4 * MIB)


def test_a_process_that_has_ended_is_no_error(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    filesizes.bound(child.pid, MIB)
    filesizes.allow(child.pid, MIB)
    filesizes.unbound(child.pid)
