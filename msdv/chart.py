"""Line charts as SVG, for pages that need nothing else."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_WIDTH, _MARGIN, _RIGHT = 720, 56, 8
_MOST_POINTS = 600

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A line of a chart."""

    name: str
    points: Points
    """(step, value), in order."""
    colour: str = "#2457a7"
    faint: bool = False
    """Thin, and without a name in the legend."""


def smoothed(points: Points) -> Points:
    """The running mean: over about a thirtieth of the points, and at least ten."""
    decay, mean, smooth = 1 - 1 / max(10, len(points) / 30), 0.0, []
    for number, (step, value) in enumerate(points):
        weight = min(decay, number / (number + 1))
        mean = weight * mean + (1 - weight) * value
        smooth.append((step, mean))
    return smooth


def chart(curves: Iterable[Curve], *, label: str, height: int = 260, unit: str = "") -> str:
    """Curves by step as an SVG, from zero upwards; a sentence where there is nothing to draw a line through.

    label: what it shows, for those who can't see it. Values far above all others are cut off.
    """
    curves = [curve for curve in curves if len(curve.points) > 1]
    if not curves:
        return "<p>Not enough steps yet.</p>"
    first = min(curve.points[0][0] for curve in curves)
    last = max(curve.points[-1][0] for curve in curves)
    values = sorted(value for curve in curves for _, value in curve.points)
    high = values[math.ceil(0.995 * (len(values) - 1))] * 1.05
    high = high if high > 0 else 1.0

    def place(step: float, value: float) -> str:
        x = _MARGIN + (_WIDTH - _MARGIN - _RIGHT) * (step - first) / max(1, last - first)
        y = height - 24 - (height - 36) * max(0.0, min(value, high)) / high
        return f"{x:.1f},{y:.1f}"

    parts = []
    for value in _ticks(high):
        x, y = place(first, value).split(",")
        parts.append(
            f'<line x1="{x}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#e4e4e4"/>'
            f'<text x="{_MARGIN - 6}" y="{float(y) + 4:.1f}" text-anchor="end" font-size="12">{value:.4g}{unit}</text>'
        )
    for curve in curves:
        width = 1 if curve.faint else 2
        line = " ".join(place(*point) for point in _thinned(curve.points))
        parts.append(f'<polyline fill="none" stroke="{curve.colour}" stroke-width="{width}" points="{line}"/>')
    named = [curve for curve in curves if curve.name and not curve.faint]
    for number, curve in enumerate(named if len(named) > 1 else []):
        left = _WIDTH - _RIGHT - 150 * (len(named) - number)
        parts.append(
            f'<line x1="{left}" y1="8" x2="{left + 18}" y2="8" stroke="{curve.colour}" stroke-width="3"/>'
            f'<text x="{left + 24}" y="12" font-size="12">{html.escape(curve.name)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}'
        f'<text x="{_MARGIN}" y="{height - 6}" font-size="12">step {first:g}</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{height - 6}" font-size="12" text-anchor="end">step {last:g}</text></svg>'
    )


def _thinned(points: Points) -> Points:
    """No more than can be seen; the last one always."""
    every = max(1, len(points) // _MOST_POINTS)
    return [*points[:-1:every], points[-1]]


def _ticks(high: float) -> list[float]:
    """About four round numbers from 0 to `high`."""
    step = 10 ** math.floor(math.log10(high / 2))
    while high / step > 5:
        step *= 2
    return [i * step for i in range(int(high / step) + 1)]
