"""What others made to judge OCI runtimes, asked about ``orlop-oci`` and in the same run about runc."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from orlop.host.cgroups import Cgroup
from tests.node import Node, scratch_directory
from tests.oci_validation import judgement, programs
from tests.oci_validation.judgement import Verdict

REPORT = Path("build/oci-validation.md")
SIDE_BY_SIDE = 3
"""Programs at the same time: each waits more than it computes."""

LEAST_PASSED = 20
"""Fewer programs without any complaint than these mean that something kept them from running."""

GROUPS = ("/cgrouptest", "/testdir/cgrouptest/container", "/testdir/cgrouptest", "/testdir")
"""Control groups whose names are in the programs."""


@dataclass(frozen=True)
class Judges:
    """Where the programs are, and the two runtimes as commands."""

    directory: Path
    ours: Path
    theirs: Path
    scratch: Path

    def judge(self, name: str, *, groups: threading.Lock | None = None) -> Verdict:
        """One program, under one runtime and then the other."""
        # Those that name a control group all name the same.
        with groups if groups is not None and "cgroups" in name else nullcontext():
            ours, theirs = (
                programs.run(self.directory, name, runtime, self.scratch / runtime.name)
                for runtime in (self.ours, self.theirs)
            )
        return judgement.judge(name, ours, theirs, judgement.excuses())


def command(path: Path, *words: str) -> Path:
    """A program that calls another with some first words."""
    path.write_text(f'#!/bin/sh\n{" ".join(words)} "$@"\n')
    path.chmod(0o755)
    return path


def clear(runtime: Path) -> None:
    """Remove the containers that programs have left: some end where they find a fault."""
    listed = subprocess.run([runtime, "list", "--quiet"], capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        subprocess.run([runtime, "delete", "--force", name], capture_output=True, check=True)


def mounted(directory: Path) -> list[str]:
    """What is mounted below a directory, the last first."""
    places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [place for place in reversed(places) if place.startswith(f"{directory}/")]


@pytest.fixture(scope="module")
def judges(shared_node: Node) -> Iterator[Judges]:
    runc = shutil.which("runc")
    assert runc is not None, "runc is not installed: ./setup.sh installs it"
    with scratch_directory("orlop-val-") as scratch:
        state = f"ORLOP_STATE={shared_node.scratch}/state"
        ours = command(scratch / "ours", state, "exec", sys.executable, "-m", "orlop.oci.command.main")
        theirs = command(scratch / "theirs", "exec", runc, "--root", f"{scratch}/runc")
        bundles = scratch / "bundles"
        for runtime in (ours, theirs):
            (bundles / runtime.name).mkdir(parents=True)
        try:
            yield Judges(programs.build(), ours, theirs, bundles)
        finally:
            clear(ours)
            clear(theirs)
            for place in mounted(bundles):
                # Where a create of runc fails, mounts can stay.
                subprocess.run(["umount", "--lazy", place], check=False)
            for group in GROUPS:
                with suppress(OSError):
                    Cgroup(group).remove()


@pytest.fixture(scope="module")
def verdicts(judges: Judges) -> dict[str, Verdict]:
    """All programs; one with a failure runs again by itself, so that a busy machine is no fault."""
    names, groups = programs.names(judges.directory), threading.Lock()
    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        found = dict(
            zip(names, threads.map(lambda name: judges.judge(name, groups=groups), names), strict=True)
        )
    for name, verdict in found.items():
        if verdict.failures:
            found[name] = judges.judge(name)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(judgement.table(list(found.values())))
    return found


def test_what_a_program_says_of_us_it_says_of_runc_or_a_vm_explains_it(verdicts: dict[str, Verdict]) -> None:
    failed = {
        name: (verdict.failures, verdict.ours.said) for name, verdict in verdicts.items() if verdict.failures
    }
    assert not failed
    assert len(verdicts) == len(programs.names(programs.build()))
    assert sum(verdict.word == "passed" for verdict in verdicts.values()) >= LEAST_PASSED


def test_the_programs_leave_nothing(verdicts: dict[str, Verdict], judges: Judges) -> None:
    clear(judges.ours)
    assert mounted(judges.scratch / judges.ours.name) == []
