"""What bats says, in the protocol TAP."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"(?P<bad>not )?ok \d+ (?P<name>.*?)(?: # skip(?P<skip>.*))?")
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Outcome:
    """One test: its word, and what it said; for a skipped one, why."""

    word: str
    said: str = ""


def parse(text: str) -> dict[str, Outcome]:
    """The tests by name, in their order. One that the plan has and nothing is said of has failed.

    Raises ValueError for what has no plan: bats could not read the file.
    """
    plan = re.search(r"^1\.\.(\d+)", text, re.M)
    if plan is None:
        raise ValueError(f"bats made no plan: {text[-400:]}")
    found: dict[str, Outcome] = {}
    name, word, said = "", "", list[str]()
    for line in [*text.splitlines(), "ok 0 end"]:
        match = _LINE.fullmatch(line)
        if match is None:
            said.append(line.removeprefix("# "))
            continue
        if name:
            found[name] = Outcome(word, found[name].said if word == SKIPPED else "\n".join(said))
        name, said = match["name"], []
        skip = match["skip"]
        word = FAILED if match["bad"] else PASSED if skip is None else SKIPPED
        found[name] = Outcome(word, (skip or "").strip())
    del found["end"]
    missing = int(plan[1]) - len(found)
    if missing > 0:
        found[f"({missing} not run)"] = Outcome(FAILED, "bats ended before")
    return found
