"""Kubernetes' conformance specs on a cluster of two nodes: ``python -m tests.cluster --help``. Needs root.

Ends with 0 only when every spec passed that is not in the list of exceptions, at the second try at last.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cluster import images
from tests.cluster.room import cluster, prepare
from tests.cluster.specs import NEEDED, fresh, judged
from tests.conformance import tools
from tests.node_e2e import judgement, programs, suite

HANDLERS = ("vm", "process", "auto")
CONFORMANCE = r"\[Conformance\]"
NODES = 2
HERE = Path(__file__).parent
SHORT, EXCEPTIONS = HERE / "short.txt", HERE / "exceptions.toml"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or what is given in its place."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="Cluster conformance.")
    parser.add_argument("--handler", default="vm", help=f"one or more of {', '.join(HANDLERS)}, with commas")
    parser.add_argument("--focus", default=CONFORMANCE, help="the specs whose name matches this expression")
    parser.add_argument("--skip", default="", help="not those whose name matches this one")
    parser.add_argument("--short", action="store_true", help="the specs of short.txt, as CI runs them")
    parser.add_argument("--processes", type=int, default=4, help="specs at a time")
    parser.add_argument("--minutes", type=int, default=120, help="bound of one run")
    parser.add_argument("--report", type=Path, default=Path("build/cluster"), help="where reports go")
    return parser.parse_args(given)


def focus(options: argparse.Namespace) -> str:
    """The expression of the specs to run."""
    if not options.short:
        return str(options.focus)
    return "|".join(line for line in SHORT.read_text().splitlines() if line and not line.startswith("#"))


def one_run(handler: str, options: argparse.Namespace, storage: Path) -> judgement.Result:
    """A cluster, the specs, and those that failed once more."""
    reports = fresh(options.report / handler)
    order = suite.Order(focus(options), options.skip, options.processes, options.minutes)
    tools.say(f"cluster under {handler}")
    # The handler of the RuntimeClass that specs make.
    named = {"process" if handler == "process" else "vm": {"names": [suite.HANDLER]}}
    with cluster(NODES, handler=handler, extra=named, storage=storage, reports=reports) as one:
        return judged(one, handler, order, reports, EXCEPTIONS)


def main() -> int:
    """Run what was asked for; 0 when all is well."""
    options = arguments()
    handlers = options.handler.split(",")
    if why := judgement.refusal("handler", handlers, HANDLERS):
        print(f"cluster: {why}", file=sys.stderr)
        return 2
    try:
        prepare()
        storage = images.storage(programs.build(NEEDED))
        # Short ones at the same time: a run waits more than it computes.
        with ThreadPoolExecutor(len(handlers) if options.short else 1) as beside:
            results = list(beside.map(lambda handler: one_run(handler, options, storage), handlers))
    except (tools.ToolError, AssertionError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    return judgement.verdict("cluster", results, options.report)


if __name__ == "__main__":
    sys.exit(main())
