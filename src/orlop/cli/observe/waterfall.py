"""``orlop report``: the calls that made a pod, and their steps, as one page that needs nothing else."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orlop.cli import output
from orlop.cli.problems import CliError
from orlop.client import session
from orlop.client.calls import CriClient
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.host import threads

_COLOURS = ("#2b5b84", "#4584b6", "#7aa6cc", "#a9c6e0", "#cbdcec")
_FAILED = "#b3261e"

_STYLE = """
body { font: 14px/1.4 sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c1c1c }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin: 1.6rem 0 .3rem }
table.facts td { padding: .1rem 1rem .1rem 0 } .facts td:first-child { color: #666 }
.row { display: flex; align-items: center; height: 1.35rem }
.name { width: 17rem; flex: none; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.lane { flex: 1; position: relative; height: .95rem; background: #f2f4f6 }
.bar { position: absolute; height: 100%; min-width: 1px }
.time { width: 6rem; flex: none; text-align: right; font-variant-numeric: tabular-nums }
"""


@dataclass(frozen=True)
class Pod:
    """What the page is about: facts, and the remembered calls, the oldest first."""

    title: str
    facts: dict[str, str]
    calls: list[dict[str, Any]]


async def pod_of(client: CriClient, name: str) -> Pod:
    """Ask the daemon. Raises CliError for a pod that is not there."""
    pod_id = await session.find_pod_id(client, name)
    if not pod_id:
        raise CliError(f"no pod {name}: `orlop ps` and `crictl pods` list them")
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True)
    answer = await client.runtime.pod_sandbox_status(request)
    info = json.loads(answer.info.get("info", "{}"))
    sandbox = info.get("sandbox", {})
    facts = {
        "pod": pod_id,
        "handler": str(info.get("handler", "")),
        "accelerator": str(sandbox.get("accelerator", "")),
        "guest kernel": str(sandbox.get("guestKernel", "")),
        "created": _when(answer.status.created_at),
    }
    title = f"{answer.status.metadata.namespace}/{answer.status.metadata.name}"
    calls = json.loads(answer.info.get("calls", "{}")).get("calls", [])
    return Pod(title, {key: value for key, value in facts.items() if value}, calls)


async def report_command(socket: str, name: str, target: Path | None, *, as_json: bool) -> None:
    """``orlop report``: write the page; as JSON, print the calls."""
    async with session.connect(socket) as client:
        pod = await pod_of(client, name)
    if as_json:
        output.print_json({"pod": pod.title, **pod.facts, "calls": pod.calls})
        return
    if not pod.calls:
        raise CliError(f"the daemon remembers no call about pod {pod.title}: it was started after them")
    path = target or Path(f"orlop-{pod.facts['pod'][:13]}.html")
    await threads.call(path.write_text, page(pod))
    print(path)


def page(pod: Pod) -> str:
    """The page. All names in it are escaped: they come from clients."""
    facts = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>"
        for key, value in pod.facts.items()
    )
    calls = "".join(_call(call) for call in pod.calls)
    title = html.escape(pod.title)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f'<table class="facts">{facts}</table>{_overview(pod.calls)}{calls}</body></html>\n'
    )


def _overview(calls: list[dict[str, Any]]) -> str:
    """All calls on one axis: what waited for the client, and what for us."""
    begun = min(call["at"] for call in calls)
    whole = max((call["at"] - begun) // 1000 + _duration(call) for call in calls)
    rows = [(call["steps"][0] | {"start_us": (call["at"] - begun) // 1000, "depth": 0}) for call in calls]
    return f"<h2>All calls, {_time(whole)}</h2>" + _rows(rows, whole)


def _call(call: dict[str, Any]) -> str:
    about = f", container {call['container'][:13]}" if call["container"] else ""
    head = f"<h2>{html.escape(_name(call['steps'][0]))}{html.escape(about)}, {_when(call['at'])}</h2>"
    return head + _rows(call["steps"], _duration(call))


def _rows(steps: Iterable[dict[str, Any]], whole: int) -> str:
    return "".join(_row(step, max(whole, 1)) for step in steps)


def _row(step: dict[str, Any], whole: int) -> str:
    depth, took = step["depth"], step["duration_us"]
    shown = max(took, 0)
    colour = _FAILED if step["failed"] else _COLOURS[min(depth, len(_COLOURS) - 1)]
    bar = (
        f"left:{min(step['start_us'] / whole, 1) * 100:.3f}%;"
        f"width:{min(shown / whole, 1) * 100:.3f}%;background:{colour}"
    )
    indent = f"padding-left:{depth * 0.9:.1f}rem"
    time = _time(took) if took >= 0 else "not ended"
    return (
        f'<div class="row"><span class="name" style="{indent}">{html.escape(_name(step))}</span>'
        f'<span class="lane"><span class="bar" style="{bar}"></span></span>'
        f'<span class="time">{time}</span></div>\n'
    )


def _name(step: dict[str, Any]) -> str:
    return str(step["name"]).removeprefix("cri.")


def _duration(call: dict[str, Any]) -> int:
    return max(int(call["steps"][0]["duration_us"]), 1)


def _time(us: int) -> str:
    return f"{us / 1e6:.2f} s" if us >= 10_000_000 else f"{us / 1000:.1f} ms"


def _when(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="milliseconds")
