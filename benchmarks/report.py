# SPDX-License-Identifier: Apache-2.0
"""The comparison's results as text and JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.measure import Footprint, Row


@dataclass
class Report:
    """All that was measured. The first back-end is compared with the best of the others."""

    backends: list[str]
    throughput: list[Row] = field(default_factory=list)
    paced: list[Row] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    client: str = "loadgen"
    versions: dict[str, str] = field(default_factory=dict)


def ratio(row: Row, backends: Sequence[str]) -> float | None:
    """Median throughput of the first back-end by the best of the others."""
    peers = [row.points[name].median("iops") for name in backends[1:] if name in row.points]
    if not peers:
        return None
    return row.points[backends[0]].median("iops") / max(max(peers), 1e-9)


def format_table(table: list[list[str]]) -> str:
    """Line the cells of a table up; its first row is the heading."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for number, row in enumerate(table):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def thousands(value: float) -> str:
    """Format a number as thousands."""
    return f"{value / 1e3:.1f}" if value < 1e5 else f"{value / 1e3:.0f}"


def _throughput_table(report: Report) -> str:
    header = ["case", "queues", "depth"]
    for name in report.backends:
        header += [f"{name} k/s", "p50 us", "p99 us"]
    if len(report.backends) > 1:
        header += ["ratio", "target"]
    with_bare = any(row.bare for row in report.throughput)
    if with_bare:
        header += ["bare k/s", "of bare"]
    table = [header]
    for row in report.throughput:
        cells = [row.case.name, str(row.case.queues), str(row.depth)]
        for name in report.backends:
            point = row.points.get(name)
            if point is None:
                cells += ["", "", ""]
                continue
            cells.append(thousands(point.median("iops")))
            cells += [f"{point.median('p50_us'):.1f}", f"{point.median('p99_us'):.1f}"]
        if len(report.backends) > 1:
            times, target = ratio(row, report.backends), row.case.target(row.depth)
            cells += [f"{times:.2f}" if times else "-", f"{target:g}" if target else "-"]
        if with_bare:
            cells += _bare_cells(row, report.backends[0])
        table.append(cells)
    return format_table(table)


def _bare_cells(row: Row, backend: str) -> list[str]:
    """The bare loop's rate, and the back-end's by it."""
    if not row.bare:
        return ["-", "-"]
    bare = statistics.median(row.bare)
    return [thousands(bare), f"{row.points[backend].median('iops') / bare:.2f}"]


def _paced_table(report: Report) -> str:
    header = ["case", "depth", "rate/s"]
    for name in report.backends:
        header += [f"{name} CPU us", "p50 us", "p99 us"]
    table = [header]
    for row in report.paced:
        cells = [row.case.name, str(row.depth), str(row.rate)]
        for name in report.backends:
            point = row.points.get(name)
            keys = ("cpu_us", "p50_us", "p99_us")
            cells += [f"{point.median(key):.2f}" if point else "" for key in keys]
        table.append(cells)
    return format_table(table)


def _footprint_table(report: Report) -> str:
    table = [["back-end", "exports", "start ms", "MiB", "MiB after use", "idle CPU %"]]
    table += [
        [
            print_.backend,
            str(print_.exports),
            f"{print_.start_ms:.0f}",
            f"{print_.memory_mib:.1f}",
            f"{print_.memory_used_mib:.1f}",
            f"{print_.idle_cpu_percent:.2f}",
        ]
        for print_ in report.footprints
    ]
    return format_table(table)


def as_text(report: Report) -> str:
    """Render the tables."""
    parts = []
    if report.versions:
        lines = [f"{name}: {text}" for name, text in report.versions.items()]
        load = ", ".join(f"{average:.2f}" for average in os.getloadavg())
        parts.append("\n".join([*lines, f"front-end: {report.client}", f"load average: {load}"]))
    if report.throughput:
        parts.append("Throughput and latency\n\n" + _throughput_table(report))
    if report.paced:
        parts.append("Daemon CPU time a request, at a fixed rate\n\n" + _paced_table(report))
    if report.footprints:
        parts.append("Without load\n\n" + _footprint_table(report))
    return "\n\n".join(parts) + "\n"


def _row(row: Row, backends: Sequence[str]) -> dict[str, Any]:
    return {
        "case": dataclasses.asdict(row.case),
        "depth": row.depth,
        "rate": row.rate,
        "ratio": ratio(row, backends),
        "target": row.case.target(row.depth),
        "bare": row.bare,
        "points": {name: dataclasses.asdict(point) for name, point in row.points.items()},
    }


def as_json(report: Report) -> str:
    """Render everything, every round's sample included."""
    return json.dumps(
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {
                "system": f"{platform.system()} {platform.release()} {platform.machine()}",
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
            },
            "backends": report.backends,
            "versions": report.versions,
            "client": report.client,
            "load_average": os.getloadavg(),
            "throughput": [_row(row, report.backends) for row in report.throughput],
            "paced": [_row(row, report.backends) for row in report.paced],
            "footprints": [dataclasses.asdict(print_) for print_ in report.footprints],
        },
        indent=1,
    )
