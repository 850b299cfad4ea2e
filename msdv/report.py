"""The report page of a run: loss curve, held-out loss, samples, settings; one HTML file that needs nothing else but the
sample gifs beside it."""

import html
import math
from collections.abc import Sequence
from typing import Any

from msdv.config import TrainConfig
from msdv.files import write_file
from msdv.run import Run

_WIDTH, _HEIGHT, _MARGIN = 720, 260, 48

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2em auto; padding: 0 1em; color: #222 }}
h2 {{ margin-top: 2em }} svg {{ width: 100%; height: auto }} td, th {{ padding: .1em .8em .1em 0; text-align: left }}
figure {{ margin: 1em 0 }} img {{ max-width: 100%; image-rendering: auto }} code {{ background: #f3f3f3 }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
<h2>Loss</h2>
{chart}
<h2>On clips never trained on</h2>
{held_out}
<h2>Samples</h2>
{samples}
<h2>Settings</h2>
<table>{settings}</table>
</body></html>
"""


def write_report(run: Run, config: TrainConfig) -> None:
    """Write the page from what the run has logged so far."""
    rows = run.read_log()
    steps = [row for row in rows if isinstance(row.get("loss"), float)]
    held = [row for row in rows if "held_out" in row]
    done = rows[-1]["step"] if rows else 0
    samples = sorted((run.folder / "samples").glob("*.gif"), reverse=True)
    figures = [
        f'<figure><img src="samples/{path.name}" alt="sample"><figcaption>{path.stem}</figcaption></figure>'
        for path in samples[:8]
    ]
    settings = [
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in config.model_dump(mode="json").items()
    ]
    page = _PAGE.format(
        title=html.escape(f"msdv run {run.folder.name}"),
        summary=f"{done} of {config.steps} steps.",
        chart=_chart([(row["step"], row["loss"]) for row in steps]),
        held_out=_held_out_table(held) or "<p>No clips were held out: --holdout 0, or fewer than five clips.</p>",
        samples="\n".join(figures) or "<p>None yet.</p>",
        settings="\n".join(settings),
    )
    with write_file(run.report) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _held_out_table(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    lines = ["<table><tr><th>step</th><th>noise</th><th>temporal layers on</th><th>off</th><th>lower by</th></tr>"]
    for row in rows[-12:]:
        loss = row["held_out"]
        lines.append(
            f"<tr><td>{row['step']}</td><td>{html.escape(loss['noise'])}</td><td>{loss['on']:.4f}</td>"
            f"<td>{loss['off']:.4f}</td><td>{loss['gain']:.1%}</td></tr>"
        )
    return "\n".join([*lines, "</table>"])


def _chart(points: Sequence[tuple[int, float]]) -> str:
    """The loss by step as an SVG: single steps faint, their running mean strong."""
    if len(points) < 2:
        return "<p>Not enough steps yet.</p>"
    every = max(1, len(points) // 600)
    first, last = points[0][0], points[-1][0]
    low, high = 0.0, sorted(value for _, value in points)[int(0.995 * (len(points) - 1))] * 1.05 or 1.0

    def place(step: float, value: float) -> str:
        x = _MARGIN + (_WIDTH - _MARGIN - 8) * (step - first) / max(1, last - first)
        y = _HEIGHT - _MARGIN / 2 - (_HEIGHT - _MARGIN) * (min(value, high) - low) / (high - low)
        return f"{x:.1f},{y:.1f}"

    mean, smooth, decay = points[0][1], [], 1 - 1 / max(10, len(points) / 30)
    for number, (step, value) in enumerate(points):
        weight = min(decay, number / (number + 1))
        mean = weight * mean + (1 - weight) * value
        smooth.append((step, mean))
    marks = []
    for value in _ticks(high):
        x, y = place(first, value).split(",")
        marks.append(
            f'<line x1="{x}" y1="{y}" x2="{_WIDTH - 8}" y2="{y}" stroke="#e4e4e4"/>'
            f'<text x="{_MARGIN - 6}" y="{float(y) + 4:.1f}" text-anchor="end" font-size="12">{value:g}</text>'
        )
    base = _HEIGHT - 6
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="loss by step">{"".join(marks)}'
        f'<polyline fill="none" stroke="#c9d6ea" points="{" ".join(place(*p) for p in points[::every])}"/>'
        f'<polyline fill="none" stroke="#2457a7" stroke-width="2" '
        f'points="{" ".join(place(*p) for p in smooth[::every])}"/>'
        f'<text x="{_MARGIN}" y="{base}" font-size="12">step {first}</text>'
        f'<text x="{_WIDTH - 8}" y="{base}" font-size="12" text-anchor="end">step {last}</text></svg>'
    )


def _ticks(high: float) -> list[float]:
    """About four round numbers from 0 to `high`."""
    step = 10 ** math.floor(math.log10(high / 2))
    while high / step > 5:
        step *= 2
    return [i * step for i in range(int(high / step) + 1)]
