"""One run of critest against a private daemon, and what came of each spec."""

from __future__ import annotations

import os
import re
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tests.conformance import tools
from tests.conformance.tools import say
from tests.node import node

Handler = Literal["vm", "process", "auto"]
Transport = Literal["spdy", "websocket"]
Outcome = Literal["passed", "unsteady", "failed", "refused", "unavailable", "skipped"]

STREAMING = "Streaming|portforward|port forward|exec|attach"
"""The specs whose result can depend on the transport."""

REFUSAL = re.compile(
    r"(asks for the host's \w+ namespace, which a VM does not share"
    r"|asks for Bidirectional propagation, but a mount made in a VM cannot appear on the host)[^\n]*"
)
"""What the handler ``vm`` says to a pod that wants to be part of the host."""

HOST_SPECS = re.compile(
    r"HostPID|HostIpc is true|HostNetwork is true|in host network|hostNetwork|host network|rshared",
    re.IGNORECASE,
)
"""The specs that ask for a namespace of the host, or for a mount to appear on it."""

WHOLE = "critest itself"

ABSENT_IMAGE = re.compile(r"test-image-digest(?:@sha256:[0-9a-f]{64}|: manifest unknown)")
"""An image that critest names by a digest which nobody but its own registry can serve, as runtimes say it."""

HANDLER_OPTIONS: dict[Handler, tuple[str, ...]] = {
    "vm": ("-runtime-handler", "vm"),
    "process": ("-runtime-handler", "process"),
    "auto": (),
}
TRANSPORT_OPTIONS: dict[Transport, tuple[str, ...]] = {
    "spdy": (),
    "websocket": ("-websocket-exec", "-websocket-attach", "-websocket-portforward"),
}


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
        """Whether it is a spec, and not the suite's set-up or critest as a whole."""
        return self.name != WHOLE and not re.match(r"\[[^]]*Suite\b", self.name)


@dataclass(frozen=True)
class Result:
    """A whole run."""

    handler: Handler
    transport: Transport
    focus: str
    specs: tuple[Spec, ...]
    seconds: float

    def of(self, outcome: Outcome) -> list[Spec]:
        """The specs that ended like that."""
        return [spec for spec in self.specs if spec.outcome == outcome]


def _short(text: str) -> str:
    """The first line of a failure that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if "rpc error" in line or "error" in line.lower():
            return line[:500]
    return (lines or ["no reason given"])[0][:500]


def judge(name: str, status: str, text: str, handler: Handler) -> tuple[Outcome, str]:
    """What a spec's status means, with the reason."""
    if status == "passed":
        return "passed", ""
    if status in ("skipped", "pending"):
        return "skipped", text.strip().removeprefix("skipped - ").splitlines()[
            0
        ] if text.strip() else "filtered"
    if handler == "vm" and HOST_SPECS.search(name) and (refusal := REFUSAL.search(text)):
        return "refused", refusal[0].strip()
    if absent := ABSENT_IMAGE.search(text):
        return "unavailable", f"only its own registry on the internet has {absent[0][:48]}..."
    return "failed", _short(text)


def parse_report(path: Path, handler: Handler) -> list[Spec]:
    """The specs in a JUnit report of ginkgo, without its set-up nodes and benchmarks."""
    found = []
    for case in ElementTree.parse(path).iter("testcase"):
        name = case.get("name", "")
        if not name.startswith("[It]"):
            if case.get("status") not in ("passed", "skipped", None):
                found.append(Spec(name, "failed", _short(_text(case)), 0.0))
            continue
        name = name.removeprefix("[It] ").removeprefix("[k8s.io] ")
        text = _text(case)
        if "benchmark" in name.lower():
            continue
        outcome, reason = judge(name, case.get("status", "failed"), text, handler)
        found.append(Spec(name, outcome, reason, float(case.get("time", "0"))))
    return found


def _text(case: ElementTree.Element) -> str:
    parts = []
    for kind in ("skipped", "failure", "error", "system-err"):
        for node_ in case.findall(kind):
            parts += [node_.get("message") or "", node_.text or ""]
    return "\n".join(parts)


def run(
    registry: str,
    handler: Handler,
    transport: Transport,
    directory: Path,
    *,
    focus: str = "",
    flags: Sequence[str] = (),
    minutes: int = 40,
) -> Result:
    """Run critest on a daemon of its own; the reports go to ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{handler}-{transport}" + ("-focus" if focus else "")
    started = time.monotonic()
    with node(registry, handler=handler, prefix="orlop-ct-") as one:
        one.wait_ready()
        options = (*HANDLER_OPTIONS[handler], *TRANSPORT_OPTIONS[transport], *flags)
        say(f"critest, handler {handler}, {transport}{f', focus {focus}' if focus else ''}")
        try:
            specs = against(
                f"unix://{one.socket}", options, directory / name, handler, focus=focus, minutes=minutes
            )
        finally:
            (directory / f"{name}-orlopd.log").write_bytes(one.settings.log.read_bytes())
        # critest is to clean up after itself; what it leaves must not hide a leak of ours.
        one.remove_all()
    return Result(handler, transport, focus, tuple(specs), time.monotonic() - started)


def only(specs: Iterable[Spec]) -> str:
    """The expression that matches these specs' names."""
    return "|".join(re.escape(spec.name) for spec in specs)


def reviewed(first: Result, second: Result) -> Result:
    """The first run as it counts after its failed specs ran again: those that passed then are unsteady."""
    good = {spec.name for spec in second.of("passed")}
    specs = (
        replace(spec, outcome="unsteady") if spec.outcome == "failed" and spec.name in good else spec
        for spec in first.specs
    )
    return replace(first, specs=tuple(specs), seconds=first.seconds + second.seconds)


def against(
    endpoint: str,
    options: Sequence[str],
    report: Path,
    handler: Handler,
    *,
    focus: str = "",
    minutes: int = 40,
) -> list[Spec]:
    """Run critest against any runtime, judged as one of ``handler``; ``report`` without suffixes is written.

    Raises ToolError when there is no result.
    """
    found, output = report.with_suffix(".xml"), report.with_suffix(".log")
    found.unlink(missing_ok=True)
    argv = [
        os.fspath(tools.cri_tools()[1]),
        *("-runtime-endpoint", endpoint),
        *("-image-endpoint", endpoint),
        *options,
        *("-ginkgo.junit-report", os.fspath(found)),
        *("-ginkgo.timeout", f"{minutes}m"),
        *(("-ginkgo.focus", focus) if focus else ()),
        "-ginkgo.no-color",
        "-ginkgo.v",
    ]
    with output.open("wb") as log:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, timeout=minutes * 60 + 120
        )
    if not found.exists():
        tail = output.read_text(errors="replace")[-1500:]
        raise tools.ToolError(f"critest ended with {done.returncode} and wrote no report:\n{tail}")
    specs = parse_report(found, handler)
    if done.returncode != 0 and not any(spec.outcome not in ("passed", "skipped") for spec in specs):
        specs.append(Spec(WHOLE, "failed", f"exit code {done.returncode}, see {output}", 0.0))
    return specs


def lines(result: Result) -> Iterable[str]:
    """The result for people: counts, then every spec that did not pass with its reason."""
    counts = ", ".join(
        f"{len(result.of(outcome))} {outcome}"
        for outcome in ("passed", "unsteady", "failed", "refused", "unavailable", "skipped")
        if outcome in ("passed", "failed") or result.of(outcome)
    )
    yield f"handler {result.handler}, {result.transport}: {counts} ({result.seconds:.0f} s)"
    for outcome in ("failed", "unsteady", "refused", "unavailable"):
        for spec in result.of(outcome):
            yield f"  {outcome}: {spec.name}"
            yield f"      {spec.reason}"
    reasons: dict[str, list[str]] = {}
    for spec in result.of("skipped"):
        if not result.focus or spec.reason not in ("filtered", "skipped"):
            reasons.setdefault(spec.reason, []).append(spec.name)
    for reason, names in sorted(reasons.items()):
        yield f"  skipped {len(names)}: {reason}"
        yield from (f"      {name}" for name in names)
