# SPDX-License-Identifier: Apache-2.0
"""The throughput table as a bar chart: SVG written by hand, so it needs no library."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from benchmarks.report import Report, ratio

if TYPE_CHECKING:
    from benchmarks.measure import Row

COLOURS = ("#2463a8", "#d9822b", "#6b9e3f", "#8b5fa3")
BAR = 13
GAP = 14
LEFT = 230
WIDTH = 560
RIGHT = 190
TOP = 60
LEGEND_STEP = 170


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )


def _scale(report: Report) -> tuple[int, int]:
    """Powers of ten that enclose all medians."""
    values = [
        max(point.median("iops"), 1.0) for row in report.throughput for point in row.points.values()
    ]
    low = math.floor(math.log10(min(values)))
    return low, max(math.ceil(math.log10(max(values))), low + 1)


def _position(value: float, scale: tuple[int, int]) -> float:
    low, high = scale
    return (math.log10(max(value, 10**low)) - low) / (high - low) * WIDTH


def _axis(scale: tuple[int, int], bottom: float) -> list[str]:
    parts = []
    for power in range(scale[0], scale[1] + 1):
        x = LEFT + _position(10**power, scale)
        parts.append(
            f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom:.1f}" stroke="#ddd"/>'
        )
        parts.append(_text(x, TOP - 10, f"{10**power:,}", "middle", "#666"))
    return parts


def _group(row: Row, report: Report, scale: tuple[int, int], y: float) -> list[str]:
    middle = y + BAR * len(report.backends) / 2 + 4
    parts = [_text(LEFT - 8, middle, f"{row.case.name}, depth {row.depth}", "end")]
    for number, name in enumerate(report.backends):
        if name not in row.points:
            continue
        value = row.points[name].median("iops")
        length = _position(value, scale)
        top = y + number * BAR
        colour = COLOURS[number % len(COLOURS)]
        parts.append(
            f'<rect x="{LEFT}" y="{top:.1f}" width="{length:.1f}" height="{BAR - 2}" '
            f'fill="{colour}"/>'
        )
        parts.append(_text(LEFT + length + 4, top + BAR - 3, f"{value:,.0f}", colour="#444"))
    times = ratio(row, report.backends)
    if times is not None:
        parts.append(_text(LEFT + WIDTH + RIGHT - 8, middle, f"{times:.2f} x", "end"))
    return parts


def as_svg(report: Report) -> str:
    """Draw requests a second (logarithmic), a group of bars a row, with the ratio beside it."""
    scale = _scale(report)
    step = BAR * len(report.backends) + GAP
    height = TOP + step * len(report.throughput) + 10
    width = LEFT + WIDTH + RIGHT
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            'font-family="sans-serif" font-size="11">'
        ),
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(8, 18, "Requests a second"),
    ]
    for number, name in enumerate(report.backends):
        x = LEFT + number * LEGEND_STEP
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{x}" y="8" width="11" height="11" fill="{colour}"/>')
        parts.append(_text(x + 16, 18, name))
    parts += _axis(scale, height - 10)
    for number, row in enumerate(report.throughput):
        parts += _group(row, report, scale, TOP + number * step)
    return "\n".join([*parts, "</svg>\n"])
