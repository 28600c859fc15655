"""What a run found: a JSON document, a table for people, a plot."""

from __future__ import annotations

import importlib.util
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

BASE = "containerd-runc"
MEASURES = (
    "ready",
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync first",
    "ExecSync",
    "StopPodSandbox",
    "RemovePodSandbox",
    "stop+remove",
)
SCALE_HEADS = (
    "pods",
    "parallel",
    "start s",
    "stop s",
    "1st ms",
    "last ms",
    "last/1st",
    "ready ms, median / p95",
    "MiB/pod",
    "daemon MiB",
    "idle %/pod",
)


@dataclass(frozen=True)
class Scale:
    """``pods`` pods of one system at once, ``ready_ms`` of each in the order of their starts."""

    pods: int
    parallel: int
    start_seconds: float
    stop_seconds: float
    ready_ms: list[float]
    mib_per_pod: float
    daemon_mib: float
    idle_percent_of_core_per_pod: float

    @property
    def growth(self) -> float:
        """How many times as long as the first pod the last one took."""
        return self.ready_ms[-1] / self.ready_ms[0]

    def document(self) -> dict[str, object]:
        """Everything, with what is computed."""
        return {
            **asdict(self),
            "median_ready_ms": statistics.median(self.ready_ms),
            "p95_ready_ms": percentile(self.ready_ms, 0.95),
            "growth": self.growth,
        }

    def row(self) -> list[str]:
        """The cells below :data:`SCALE_HEADS`."""
        median, p95 = statistics.median(self.ready_ms), percentile(self.ready_ms, 0.95)
        return [
            str(self.pods),
            str(self.parallel),
            *(f"{value:.2f}" for value in (self.start_seconds, self.stop_seconds)),
            *(f"{value:.0f}" for value in (self.ready_ms[0], self.ready_ms[-1])),
            f"{self.growth:.2f}",
            f"{median:.0f} / {p95:.0f}",
            *(f"{value:.1f}" for value in (self.mib_per_pod, self.daemon_mib)),
            f"{self.idle_percent_of_core_per_pod:.3f}",
        ]


@dataclass(frozen=True)
class Burst:
    """``pods`` pods of one system asked for at one moment: milliseconds until each was ready."""

    pods: int
    ready_ms: list[float]


BURST_HEADS = ("pods at once", "rounds", "first ready ms", "half ready ms", "all ready ms")


@dataclass
class Report:
    """All figures of a run. ``samples[system][measure]`` are milliseconds of the rounds that went well."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    scale: dict[str, list[Scale]] = field(default_factory=dict)
    bursts: dict[str, list[Burst]] = field(default_factory=dict)
    daemon_idle_mib: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)

    def add(self, system: str, times: Mapping[str, float]) -> None:
        """One round of a system."""
        measures = self.samples.setdefault(system, {})
        for name, value in times.items():
            measures.setdefault(name, []).append(value)

    def save(self, directory: Path) -> None:
        """Write ``bench.json``, and ``bench.svg`` where it can be drawn."""
        directory.mkdir(parents=True, exist_ok=True)
        host = f"{platform.system()} {platform.machine()}"
        scale = {system: [one.document() for one in scales] for system, scales in self.scale.items()}
        document = {**asdict(self), "scale": scale, "summary": self.summary(), "host": host}
        (directory / "bench.json").write_text(json.dumps(document, indent=1) + "\n")
        if self.samples and can_plot():
            plot(self, directory / "bench.svg")

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """``[system][measure]``: median, p95, and the ratio of the median to containerd + runc."""
        result: dict[str, dict[str, dict[str, float]]] = {}
        base = self.samples.get(BASE, {})
        for system, measures in self.samples.items():
            for name, values in measures.items():
                line = {"median": statistics.median(values), "p95": percentile(values, 0.95)}
                if base.get(name):
                    line["ratio"] = line["median"] / statistics.median(base[name])
                result.setdefault(system, {})[name] = line
        return result

    def table(self) -> str:
        """Medians with p95 and ratios, one row for each measure; then memory and scale."""
        summary = self.summary()
        rows = [["median / p95 ms (ratio)", *summary]]
        for measure in MEASURES:
            row = [measure]
            for system in summary:
                line = summary[system].get(measure)
                row.append("-" if line is None else _cell(line))
            rows.append(row)
        lines = _align(rows) if summary else []
        for system, scales in self.scale.items():
            lines.append("")
            body = [scale.row() for scale in scales]
            lines.extend(_align([[system, *SCALE_HEADS], *(["", *row] for row in body)]))
        for system, bursts in self.bursts.items():
            lines.append("")
            lines.extend(_align([[system, *BURST_HEADS], *_burst_rows(bursts)]))
        lines.append("")
        lines.extend(f"{name}: daemon idle {mib:.1f} MiB" for name, mib in self.daemon_idle_mib.items())
        lines.extend(f"{name}: not measured, {reason}" for name, reason in self.missing.items())
        for name, bad in self.failed.items():
            lines.append(f"{name}: {len(bad)} rounds failed, the last because: {bad[-1]}")
        return "\n".join(lines)


def _burst_rows(bursts: Sequence[Burst]) -> list[list[str]]:
    """One row for each number of pods, with medians over the rounds."""
    rows = []
    for pods in sorted({burst.pods for burst in bursts}):
        rounds = [sorted(burst.ready_ms) for burst in bursts if burst.pods == pods]
        places = (0, (pods - 1) // 2, pods - 1)
        cells = [f"{statistics.median(ready[place] for ready in rounds):.0f}" for place in places]
        rows.append(["", str(pods), str(len(rounds)), *cells])
    return rows


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the sorted values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _cell(line: Mapping[str, float]) -> str:
    ratio = f" ({line['ratio']:.2f})" if "ratio" in line else ""
    return f"{line['median']:.0f} / {line['p95']:.0f}{ratio}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def can_plot() -> bool:
    """Whether the library that draws is here; setup does not install it."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(report: Report, path: Path) -> None:
    """Bars of the medians for each system, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    shown = ("ready", "ExecSync", "stop+remove")
    summary = report.summary()
    figure, axes = pyplot.subplots(1, len(shown), figsize=(12, 0.45 * len(summary) + 1.6), sharey=True)
    for axis, measure in zip(axes, shown, strict=True):
        names = [system for system in summary if measure in summary[system]]
        values = [summary[system][measure]["median"] for system in names]
        colours = ["#1f6f8b" if name.startswith("orlop") else "#b0b7bd" for name in names]
        bars = axis.barh(names, values, color=colours)
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.set_title(f"{measure} (ms, median)")
        axis.margins(x=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
