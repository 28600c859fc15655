"""What counts as a failure of ours: what crun passes in the same place, and no entry of the list explains."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.podman_system.tap import FAILED, PASSED, SKIPPED, Outcome

EXPECTED = Path(__file__).with_name("expected.toml")
Outcomes = Mapping[str, Outcome]


@dataclass(frozen=True)
class Entry:
    """A test that fails with our runtime alone, and why."""

    file: str
    test: str
    reason: str


def entries(path: Path = EXPECTED) -> dict[tuple[str, str], Entry]:
    """The list, by file and test; raises ValueError for an entry without a reason."""
    found: dict[tuple[str, str], Entry] = {}
    for file, tests in tomllib.loads(path.read_text()).items():
        for test, reason in tests.items():
            if not reason.strip():
                raise ValueError(f"the entry for {test!r} of {file} has no reason")
            found[file, test] = Entry(file, test, reason)
    return found


@dataclass(frozen=True)
class Verdict:
    """One file: how often each word was said of crun and of ours, and which tests fail with ours alone."""

    file: str
    theirs: Counter[str]
    ours: Counter[str]
    excused: tuple[Entry, ...]
    failures: tuple[str, ...]
    surprises: tuple[str, ...]
    """Tests of the list that pass."""

    @property
    def both(self) -> int:
        """Tests that fail with both: podman's own matters, or the machine's."""
        return self.ours[FAILED] - len(self.excused) - len(self.failures)


def judge(file: str, theirs: Outcomes, ours: Outcomes, known: Mapping[tuple[str, str], Entry]) -> Verdict:
    """Compare the two runs of a file; a test that only crun runs is a failure of ours."""
    excused, failures, surprises = [], [], []
    for name in dict.fromkeys((*theirs, *ours)):
        word, other = (ran[name].word if name in ran else FAILED for ran in (ours, theirs))
        entry = known.get((file, name))
        if word == FAILED and other != FAILED:
            if entry is None:
                failures.append(name)
            else:
                excused.append(entry)
        elif entry is not None and word == PASSED:
            surprises.append(name)
    return Verdict(
        file,
        Counter(one.word for one in theirs.values()),
        Counter(one.word for one in ours.values()),
        tuple(excused),
        tuple(failures),
        tuple(surprises),
    )


def table(verdicts: Sequence[Verdict], seconds: Mapping[str, tuple[int, int]]) -> str:
    """All files, for people; then what fails with ours alone."""
    head = ("file", "crun: passed", "failed", "skipped", "orlop-oci: passed", "failed", "skipped")
    lines = [
        "| " + " | ".join((*head, "alone", "crun s", "orlop-oci s")) + " |",
        "|" + "---|" * (len(head) + 3),
    ]
    total_theirs, total_ours = Counter[str](), Counter[str]()
    words = (PASSED, FAILED, SKIPPED)
    for one in verdicts:
        total_theirs += one.theirs
        total_ours += one.ours
        counts = [*(one.theirs[word] for word in words), *(one.ours[word] for word in words)]
        cells = [*counts, len(one.excused) + len(one.failures), *seconds[one.file]]
        lines.append(f"| `{one.file}` | " + " | ".join(map(str, cells)) + " |")
    alone = sum(len(one.excused) + len(one.failures) for one in verdicts)
    spent = [sum(times) for times in zip(*seconds.values(), strict=True)]
    cells = [*(total_theirs[word] for word in words), *(total_ours[word] for word in words), alone, *spent]
    lines.append("| all | " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| file | test | why it fails with `orlop-oci` alone |", "|---|---|---|"]
    for one in verdicts:
        lines += [f"| `{one.file}` | {entry.test} | {entry.reason} |" for entry in one.excused]
        lines += [f"| `{one.file}` | {name} | **not expected** |" for name in one.failures]
    for one in verdicts:
        lines += [f"\nPasses and was not expected to: {one.file}: {name}" for name in one.surprises]
    return "\n".join(lines) + "\n"
