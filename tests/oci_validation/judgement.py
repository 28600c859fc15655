"""What counts as a failure of ours: what neither the machine nor a virtual machine explains."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.oci_validation.programs import Run

EXCEPTIONS = Path(__file__).with_name("exceptions.toml")


@dataclass(frozen=True)
class Excuse:
    """What some programs may complain of, and why."""

    program: re.Pattern[str]
    complaint: re.Pattern[str]
    reason: str


@dataclass(frozen=True)
class Verdict:
    """One program: what it says of us alone, without an excuse, and the reasons of what has one."""

    name: str
    ours: Run
    theirs: Run
    failures: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def word(self) -> str:
        """The outcome."""
        if self.failures:
            return "failed"
        if self.reasons:
            return "excused"
        return "as runc" if self.ours.complaints else "passed"


def excuses(path: Path = EXCEPTIONS) -> list[Excuse]:
    """The list; each entry has a reason."""
    found = []
    for entry in tomllib.loads(path.read_text())["exception"]:
        if not entry["reason"].strip():
            raise ValueError(f"the exception for {entry['program']!r} has no reason")
        found.append(
            Excuse(re.compile(entry["program"]), re.compile(entry.get("complaint", "")), entry["reason"])
        )
    return found


def judge(name: str, ours: Run, theirs: Run, known: Sequence[Excuse]) -> Verdict:
    """Compare a program's run with that of runc: what it says of both, the machine cannot do."""
    failures, reasons = [], []
    for complaint in (Counter(ours.complaints) - Counter(theirs.complaints)).elements():
        for one in known:
            if one.program.fullmatch(name) and one.complaint.search(complaint):
                reasons.append(one.reason)
                break
        else:
            failures.append(complaint)
    return Verdict(name, ours, theirs, tuple(dict.fromkeys(failures)), tuple(dict.fromkeys(reasons)))


def table(verdicts: Sequence[Verdict]) -> str:
    """All programs, for people."""
    lines = ["| program | outcome | checks passed | under runc | why |", "|---|---|---|---|---|"]
    for one in verdicts:
        why = "; ".join((*one.failures, *one.reasons))
        lines.append(f"| `{one.name}` | {one.word} | {one.ours.passed} | {one.theirs.passed} | {why} |")
    words = Counter(one.word for one in verdicts)
    summary = ", ".join(f"{count} {word}" for word, count in words.most_common())
    return "\n".join((*lines, "", f"{len(verdicts)} programs: {summary}")) + "\n"
