"""What became of each spec, what is excused with which reason, and the table that compares runtimes."""

from __future__ import annotations

import os
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

Outcome = Literal["passed", "unsteady", "failed", "excused", "skipped", "unfinished"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
EXCEPTIONS = Path(__file__).with_name("exceptions.toml")
PEER = "containerd"
WHOLE = "the run itself"


@dataclass(frozen=True)
class Excuse:
    """Specs that may fail under some runtimes, and why."""

    spec: re.Pattern[str]
    runtimes: frozenset[str]
    reason: str


@dataclass(frozen=True)
class Spec:
    """One spec's result; ``reason`` is empty when it passed.

    An unsteady one failed, for that reason, and passed when it ran again by itself.
    """

    name: str
    outcome: Outcome
    reason: str
    seconds: float

    @property
    def can_run_alone(self) -> bool:
        """Whether it is a spec, and not the suite's set-up or the run as a whole."""
        return self.name != WHOLE and not re.match(r"\[[^]]*Suite\b", self.name)


@dataclass(frozen=True)
class Result:
    """A whole run under one runtime."""

    runtime: str
    specs: tuple[Spec, ...]
    seconds: float

    def of(self, outcome: Outcome) -> list[Spec]:
        """The specs that ended like that."""
        return [spec for spec in self.specs if spec.outcome == outcome]


def exceptions(path: Path = EXCEPTIONS) -> list[Excuse]:
    """The list of exceptions; each entry has a reason."""
    found = []
    for entry in tomllib.loads(path.read_text()).get("exception", []):
        pattern, runtimes, reason = entry["spec"], frozenset(entry["runtimes"]), entry["reason"].strip()
        if not reason or not runtimes:
            raise ValueError(f"the exception for {pattern!r} has no reason, or no runtime")
        found.append(Excuse(re.compile(pattern), runtimes, reason))
    return found


def _reason(case: ElementTree.Element) -> str:
    """What the failure says, in one line: the last word on it is in the report."""
    said = ""
    for kind in ("failure", "error", "skipped"):
        for node in case.findall(kind):
            said = said or node.get("message") or node.text or ""
    return " ".join(said.split())[:400] or "no reason given"


def parse(report: Path, runtime: str, excused: Sequence[Excuse]) -> tuple[Spec, ...]:
    """The specs in a JUnit report of ginkgo that ran, or that skipped themselves; filtered ones are left out.

    A set-up that failed counts as a spec.
    """
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        name, status = case.get("name", ""), case.get("status", "failed")
        reason = _reason(case)
        if not name.startswith("[It]"):
            if status not in ("passed", "skipped"):
                found.append(Spec(name, "failed", reason, 0.0))
            continue
        name = name.removeprefix("[It] ")
        seconds = float(case.get("time", "0"))
        if status == "passed":
            found.append(Spec(name, "passed", "", seconds))
        elif status in ("skipped", "pending"):
            # What the focus left out has no words of its own.
            if reason not in ("skipped", "pending", "no reason given"):
                found.append(Spec(name, "skipped", reason.removeprefix("skipped - "), seconds))
        elif status in ("timedout", "interrupted") and "timeout occurred" in reason.lower():
            found.append(Spec(name, "unfinished", "the time for the whole run was over", seconds))
        else:
            why = next((one for one in excused if runtime in one.runtimes and one.spec.search(name)), None)
            outcome: Outcome = "excused" if why else "failed"
            found.append(Spec(name, outcome, why.reason if why else reason, seconds))
    return tuple(found)


def only(specs: Sequence[Spec]) -> str:
    """The expression that matches these specs' names, which end with their labels in a report."""
    return "|".join(re.escape(re.sub(r" \[[^][]*\]$", "", spec.name)) for spec in specs)


def reviewed(first: Result, second: Result) -> Result:
    """The first run as it counts after its failed specs ran again: those that passed then are unsteady."""
    good = {spec.name for spec in second.of("passed")}
    specs = (
        replace(spec, outcome="unsteady") if spec.outcome == "failed" and spec.name in good else spec
        for spec in first.specs
    )
    return Result(first.runtime, tuple(specs), first.seconds + second.seconds)


def lines(result: Result) -> Iterator[str]:
    """A run for people: counts, then every spec that did not pass with its reason."""
    counts = ", ".join(f"{len(result.of(outcome))} {outcome}" for outcome in OUTCOMES)
    yield f"{result.runtime}: {counts} ({result.seconds:.0f} s)"
    for outcome in ("failed", "unsteady", "excused"):
        for spec in result.of(outcome):
            yield f"  {outcome}: {spec.name}"
            yield f"      {spec.reason}"


def problems(results: Sequence[Result], least: int) -> list[str]:
    """Why the runs do not count as good.

    A spec that fails under the peer as well, in the same run, is the machine's failure and not Orlop's.
    """
    peers = {spec.name for result in results if result.runtime == PEER for spec in result.of("failed")}
    found = []
    for result in results:
        passed = len(result.of("passed"))
        if passed < least:
            found.append(f"{result.runtime}: only {passed} specs passed, at least {least} should")
        if unfinished := len(result.of("unfinished")):
            found.append(f"{result.runtime}: {unfinished} specs and those after them had no time")
        if result.runtime != PEER:
            found += [
                f"{result.runtime}: {spec.name}" for spec in result.of("failed") if spec.name not in peers
            ]
    return found


def table(results: Sequence[Result]) -> Iterator[str]:
    """The runs side by side, then each spec that some passed and others did not (Markdown)."""
    yield f"| runtime | {' | '.join(OUTCOMES)} | time |"
    yield "|---|" + "---|" * (len(OUTCOMES) + 1)
    for one in results:
        counts = (len(one.of(outcome)) for outcome in OUTCOMES)
        yield f"| `{one.runtime}` | {' | '.join(map(str, counts))} | {one.seconds:.0f} s |"
    outcomes: dict[str, dict[str, Outcome]] = {}
    for one in results:
        for spec in one.specs:
            outcomes.setdefault(spec.name, {})[one.runtime] = spec.outcome
    unlike = {name: row for name, row in outcomes.items() if {*row.values()} - {"passed", "skipped"}}
    if unlike:
        yield ""
        yield f"| spec | {' | '.join(f'`{one.runtime}`' for one in results)} |"
        yield "|---|" + "---|" * len(results)
        for name, row in sorted(unlike.items()):
            yield f"| {name} | {' | '.join(row.get(one.runtime, '-') for one in results)} |"


def refusal(kind: str, asked: Sequence[str], known: Collection[str]) -> str:
    """Why nothing that was asked for can run here, of the ``kind`` that is ``known``; "" when it can."""
    if unknown := set(asked) - {*known}:
        return f"no {kind} {', '.join(unknown)}; there are {', '.join(known)}"
    if os.geteuid() != 0:
        return "a kubelet needs root"
    return ""


def verdict(suite: str, results: Sequence[Result], reports: Path) -> int:
    """Print the table and what is wrong; the exit status that says whether all is well."""
    print("\n".join(table(results)))
    bad = problems(results, 1)
    print(f"{suite}: {len(bad)} problems; reports: {reports}")
    for problem in bad:
        print(f"  {problem}")
    return 1 if bad else 0
