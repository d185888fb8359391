"""Write the figures of ``benchmarks/results`` into the pages that have markers for them.

python -m benchmarks.report [PAGE [RESULTS]]
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import comparisons, overview
from .summary import Goal, Report, Table

TOP = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGE = RESULTS / "README.md"
OTHERS = (
    TOP / "README.md", TOP / "README.ru.md", TOP / "docs" / "performance.md",
    TOP / "docs" / "scaling.md",
)  # fmt: skip
MARKED = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Renew what stands between ``<!-- figures: NAME -->`` and ``<!-- end -->``.

    NAME is a comparison, ``throughput_table`` for its table without the goals, ``goals``,
    ``machine``, or a table of `overview`. One without results is left as it is.
    """
    saved = {
        name: json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in comparisons.NAMES
        if (results / f"{name}.json").exists()
    }
    reports = {name: comparisons.load(name).report(each["rows"]) for name, each in saved.items()}
    texts = {name: _tables(report, saved[name]) for name, report in reports.items()}
    if saved:
        texts["goals"] = _goals(reports)
        texts["machine"] = _machine(list(saved.values()))
    if "throughput" in saved:
        texts["throughput_table"] = _tables(
            replace(reports["throughput"], goals=[]), saved["throughput"]
        )
    if {"throughput", "slow_fsync", "processes"} <= set(saved):
        rows = [saved[name]["rows"] for name in ("throughput", "slow_fsync", "processes")]
        texts |= overview.tables(*rows[:2])
        texts["capacity"] = overview.capacity(*rows)

    def renew(found: re.Match[str]) -> str:
        text = texts.get(found[2])
        return found[0] if text is None else f"{found[1]}\n{text}\n\n{found[3]}"

    page.write_text(MARKED.sub(renew, page.read_text(encoding="utf-8")), encoding="utf-8")


def _tables(report: Report, saved: dict[str, Any]) -> str:
    tables = [f"**{table.title}**\n\n{table.markdown()}" for table in report.tables]
    if report.goals:
        tables.append(goals_of(report.goals).markdown())
    return "\n\n".join([_run(saved), *tables])


def _run(saved: dict[str, Any]) -> str:
    """Which run the figures are of: each comparison may have been measured on another day."""
    machine, sizes = saved["machine"], saved["setup"]
    return (
        f"Run of {machine['date']}, rounds: {sizes['rounds']}. {machine['disk']}; "
        f"{machine['load']}."
    )


def goals_of(goals: list[Goal]) -> Table:
    """The goals of a comparison beside what was measured."""
    table = Table("Goals", ["Goal", "wanted", "measured", "reached"])
    for goal in goals:
        reached = "yes" if goal.reached else "**no**"
        table.rows.append([goal.what, goal.wanted, goal.measured, reached])
    return table


def _goals(reports: dict[str, Report]) -> str:
    goals = [goal for report in reports.values() for goal in report.goals]
    reached = sum(goal.reached for goal in goals)
    return f"{reached} of {len(goals)} goals are reached. Each stands below its figures."


def _machine(saved: list[dict[str, Any]]) -> str:
    """The machine of the first file of results. The tables say when each was measured."""
    described: dict[str, str] = saved[0]["machine"]
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in described.items())])


def draw_overview(results: Path = RESULTS) -> None:
    """Draw the chart of the README anew, if there is matplotlib and there are results."""
    files = [results / f"{name}.json" for name in ("throughput", "slow_fsync")]
    if all(each.exists() for each in files):
        here, slow = (json.loads(each.read_text(encoding="utf-8"))["rows"] for each in files)
        overview.draw(here, slow, results)


if __name__ == "__main__":
    if sys.argv[1:]:
        write(*map(Path, sys.argv[1:]))
    else:
        for each in (PAGE, *OTHERS):
            write(each)
        draw_overview()
