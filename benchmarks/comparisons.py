"""Which comparisons there are, and their charts."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from .setup import Setup
from .summary import Bars, Report, Row

NAMES = (
    "throughput", "slow_fsync", "lone_writer", "bulk", "scaling", "busy", "sleepers", "fairness",
    "processes", "loop_stall", "waiting", "import_time", "versions",
)  # fmt: skip


class Comparison(Protocol):
    """A module of this package that measures something."""

    TITLE: str

    def measure(self, setup: Setup) -> Iterator[Row]: ...

    def report(self, rows: list[Row]) -> Report: ...


def load(name: str) -> Comparison:
    return cast(Comparison, import_module(f".{name}", __package__))


def plot(charts: list[Bars], out: Path, name: str) -> bool:
    """Draw the charts as ``NAME.svg``; false if matplotlib is not there to do it."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    if not charts:
        return True
    height = sum(0.8 + 0.24 * len(chart.bars) for chart in charts)
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots(
        len(charts), squeeze=False, height_ratios=[2 + len(chart.bars) for chart in charts]
    )
    for axis, chart in zip(axes[:, 0], charts, strict=True):
        names, values = zip(*reversed(chart.bars), strict=True)
        colours = ["#1f6f8b" if "qsession" in each else "#b8c4cc" for each in names]
        axis.bar_label(axis.barh(names, values, color=colours), fmt=_label, padding=3, fontsize=8)
        axis.set_title(f"{chart.title} ({chart.unit})", fontsize=10, loc="left")
        axis.tick_params(labelsize=8)
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    return True


def _label(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
