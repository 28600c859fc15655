"""podman's own system tests: ``python -m tests.podman_system --help``. Needs root.

Each file runs with crun and with ``orlop-oci``, each in a place of its own, where podman, bats and what they
keep are seen by this run alone. What fails with crun as well is podman's or the machine's. What fails with
``orlop-oci`` alone must be in ``expected.toml`` with its reason. Ends with 0 when it is; a test of the list
that passes is told.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conformance import tools
from tests.podman_system import judgement, place, run, suite, tap
from tests.podman_system.judgement import Outcomes, Verdict

THEIRS = "crun"
BUILD = Path("build/podman-system")
AGAIN = "again"


def start(runtime: str, files: list[str], output: Path, pattern: str) -> int:
    """One runtime through files, from nothing."""
    output.mkdir(parents=True, exist_ok=True)
    for name in files:
        for suffix in ("tap", "seconds"):
            (output / f"{name}.{suffix}").unlink(missing_ok=True)
    init = suite.roots()[1] / "usr/bin/catatonit"
    words = [runtime, str(output.absolute()), *files, *(["--filter", pattern] if pattern else [])]
    return subprocess.run(place.inside(init, "tests.podman_system.run", words), check=False).returncode


def outcomes(output: Path, name: str) -> Outcomes:
    """What was said of a file."""
    return tap.parse((output / f"{name}.tap").read_text(errors="replace"))


def seconds(output: Path, name: str) -> int:
    """What it took."""
    return int((output / f"{name}.seconds").read_text())


def judge(build: Path, files: list[str]) -> list[Verdict]:
    """Compare the runs; write the table."""
    known = judgement.entries()
    ours, theirs = build / run.OURS, build / THEIRS
    verdicts = []
    for name in files:
        mine = dict(outcomes(ours, name))
        if (build / AGAIN / f"{name}.tap").exists():
            mine |= outcomes(build / AGAIN, name)
        verdicts.append(judgement.judge(name, outcomes(theirs, name), mine, known))
    times = {name: (seconds(theirs, name), seconds(ours, name)) for name in files}
    (build / "table.md").write_text(judgement.table(verdicts, times))
    return verdicts


def again(failed: list[Verdict]) -> None:
    """Run what failed once more by itself: some tests count seconds, and the machine may be busy."""
    names = [re.sub(r"([].^$*+?(){}|\\[])", r"\\\1", name) for one in failed for name in one.failures]
    start(run.OURS, [one.file for one in failed], BUILD / AGAIN, f"^({'|'.join(names)})$")


def main() -> int:
    """Run what was asked for; 0 when all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.podman_system", description=__doc__)
    parser.add_argument(
        "--files", default="", help="beginnings of their names, by commas; all without a word"
    )
    parser.add_argument("--filter", default="", help="a regular expression for names of tests")
    parser.add_argument("--judge", action="store_true", help="run nothing, judge the last run again")
    options = parser.parse_args()
    wanted = tuple(options.files.split(","))
    files = [name for name in suite.FILES if name.startswith(wanted)]
    if not files:
        parser.error(f"no file of the suite that is run begins with {options.files}")
    suite.directory()
    tools.docker_registry()
    tools.busybox()
    if not options.judge:
        for name in files:
            (BUILD / AGAIN / f"{name}.tap").unlink(missing_ok=True)
        with ThreadPoolExecutor(2) as threads:
            codes = list(
                threads.map(lambda name: start(name, files, BUILD / name, options.filter), (THEIRS, run.OURS))
            )
        if any(codes):
            print(
                "podman-system: a run ended with an error, see above; --judge says what its tests did",
                file=sys.stderr,
            )
            return 1
    verdicts = judge(BUILD, files)
    failed = [one for one in verdicts if one.failures]
    if failed and not options.judge:
        again(failed)
        verdicts = judge(BUILD, files)
    print((BUILD / "table.md").read_text())
    return int(any(one.failures for one in verdicts))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
