"""``python -m tests.tally``: how many tests the reports in ``build/`` tell of, on one line.

Ends with 0 only when there are some and none failed. pytest's reports are JUnit's XML files in
``build/tests`` (and ``build/debian13/tests``); those of critest are JSON files in ``build/conformance``.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

BUILD = Path("build")


def count(build: Path) -> Counter[str]:
    """Tests by outcome: passed, failed (with errors), skipped (with what critest could not ask)."""
    found: Counter[str] = Counter()
    for path in sorted(build.glob("**/tests/*.xml")):
        for suite in ElementTree.parse(path).iter("testsuite"):
            failed = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
            skipped = int(suite.get("skipped", "0"))
            found.update(failed=failed, skipped=skipped)
            found.update(passed=int(suite.get("tests", "0")) - failed - skipped)
    for path in sorted((build / "conformance").glob("*.json")):
        for spec in json.loads(path.read_text())["specs"]:
            # What passed when it ran again by itself is told as unsteady.
            outcome = "passed" if spec["outcome"] == "unsteady" else spec["outcome"]
            found[outcome if outcome in ("passed", "failed") else "skipped"] += 1
    return found


def main() -> int:
    """Print the line."""
    found = count(BUILD)
    print(f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped")
    return 0 if found["passed"] and not found["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
