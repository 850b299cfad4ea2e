"""The report page of a run: how the training goes, its samples and its settings, in one HTML file that needs no network
and nothing beside it."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msdv.chart import Curve, Points, chart, smoothed
from msdv.config import TrainConfig
from msdv.files import write_file
from msdv.run import Run
from msdv.verdict import NAMES, MotionNumbers, compared_by

_MOST_SAMPLES = 12
_MOST_BYTES = 24 * 2**20
"""Of samples inside the page. Those that don't fit are shown from the folder beside it."""
_OTHER = "#b45309"

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
{loss}
<h2>On clips never trained on</h2>
{held_out}
<h2>Does it move?</h2>
{motion}
<h2>Learning rate</h2>
{rate}
<h2>Seconds a step</h2>
{speed}
<h2>Memory, GiB at the peak</h2>
{memory}
<h2>Samples</h2>
{samples}
<h2>Settings</h2>
<table>{settings}</table>
</body></html>
"""


def write_report(run: Run, config: TrainConfig) -> None:
    """Write the page from what the run has logged so far. Raises OSError where it can't be written."""
    rows = run.read_log()
    loss = _values(rows, "loss")
    settings = [
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in config.model_dump(mode="json").items()
    ]
    lines = [Curve("", loss, "#c9d6ea", faint=True), Curve("", smoothed(loss))]
    page = _PAGE.format(
        title=html.escape(f"msdv run {run.folder.name}"),
        summary=html.escape(_summary(rows, config)),
        loss=chart(lines, label="loss by step"),
        held_out=_held_out([row for row in rows if "held_out" in row]),
        motion=_motion([row for row in rows if isinstance(row.get("motion"), dict)]),
        rate=_small(rows, "lr", "learning rate by step"),
        speed=_small(rows, "seconds", "seconds a step"),
        memory=_small(rows, "memory_gib", "memory by step"),
        samples="\n".join(_figures(run)) or "<p>None yet.</p>",
        settings="\n".join(settings),
    )
    with write_file(run.report) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _values(rows: Sequence[dict[str, Any]], name: str) -> Points:
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]


def _summary(rows: Sequence[dict[str, Any]], config: TrainConfig) -> str:
    done = rows[-1]["step"] if rows else 0
    words = [f"{done} of {config.steps} steps"]
    seconds = sorted(value for _, value in _values(rows, "seconds"))
    if seconds:
        words.append(f"{seconds[len(seconds) // 2]:.3g} seconds a step")
        words.append(f"{sum(seconds) / 3600:.1f} hours so far")
    memory = [value for _, value in _values(rows, "memory_gib")]
    if memory:
        words.append(f"{max(memory):.1f} GiB at most")
    if skipped := sum(1 for row in rows if "loss" in row and not isinstance(row["loss"], float)):
        words.append(f"{skipped} without a finite loss")
    return ", ".join(words) + "."


def _small(rows: Sequence[dict[str, Any]], name: str, label: str) -> str:
    return chart([Curve("", _values(rows, name))], label=label, height=140)


def _held_out(rows: Sequence[dict[str, Any]]) -> str:
    """A chart for each kind of noise, and the last numbers."""
    if not rows:
        return "<p>Nothing yet, or nothing was held out: --holdout 0, or fewer than five clips.</p>"
    parts = []
    for name in dict.fromkeys(_measured_with(row) for row in rows):
        own = [row for row in rows if _measured_with(row) == name]
        if len(own) > 1:
            on = Curve("temporal layers on", [(row["step"], row["held_out"]["on"]) for row in own])
            off = Curve("off", [(row["step"], row["held_out"]["off"]) for row in own], _OTHER)
            parts.append(f"<p>{html.escape(name)}</p>")
            parts.append(chart([on, off], label=f"loss on held-out clips, {name}", height=200))
    heads = ("step", "with", "temporal layers on", "off", "lower by", "its flicker lower by")
    parts.append("<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>")
    for row in rows[-12:]:
        loss = row["held_out"]
        parts.append(
            f"<tr><td>{row['step']}</td><td>{html.escape(_measured_with(row))}</td><td>{loss['on']:.4f}</td>"
            f"<td>{loss['off']:.4f}</td><td>{loss['gain']:.1%}</td>"
            f"<td>{_share(loss.get('steadiness'))}</td></tr>"
        )
    return "\n".join([*parts, "</table>"])


def _measured_with(row: dict[str, Any]) -> str:
    """Kind of noise, and which frames were given, if any."""
    given = row["held_out"].get("given", "none")
    return f"{row['held_out']['noise']} noise" + ("" if given == "none" else f", {given} given")


def _motion(rows: Sequence[dict[str, Any]]) -> str:
    """The newest verdict, its numbers beside the clips', and how the flow came there."""
    if not rows:
        return "<p>Nothing yet: it is measured on samples (--sample-every).</p>"
    newest = rows[-1]["motion"]
    found, clips = newest["numbers"], newest.get("clips", {})
    numbers, data = (MotionNumbers.model_validate(row) if row else None for row in (found, clips))
    name = compared_by(numbers, data) if numbers else "flow"
    flow = [(row["step"], row["motion"]["numbers"][name]) for row in rows if name in row["motion"]["numbers"]]
    curves = [Curve("samples", flow)]
    if name in clips and flow:
        curves.append(Curve("clips", [(step, clips[name]) for step, _ in flow], _OTHER))
    parts = [
        f"<p>Step {rows[-1]['step']}: <strong>{html.escape(newest['verdict'])}</strong></p>",
        chart(curves, label=f"{name.partition('_')[0]} by step, pixels a frame", height=140),
        "<table><tr><th>number</th><th>samples</th><th>clips</th></tr>",
        *(
            f"<tr><td>{html.escape(what)}</td><td>{_number(found.get(key))}</td><td>{_number(clips.get(key))}</td></tr>"
            for key, what in NAMES.items()
            if key in found
        ),
        "</table>",
        "<p>Lengths are in pixels of a picture scaled to 128, brightness is 0 to 255.</p>",
    ]
    if "gain" in newest:
        parts.append(f"<p>Sampling makes the noise {newest['gain']:.3g} times as fast as the picture is to go.</p>")
    if len(rows) > 1:
        parts.append("<table><tr><th>step</th><th>verdict</th></tr>")
        parts += [f"<tr><td>{r['step']}</td><td>{html.escape(r['motion']['verdict'])}</td></tr>" for r in rows[-12:]]
        parts.append("</table>")
    return "\n".join(parts)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _figures(run: Run) -> list[str]:
    """Sample gifs over time, the newest first."""
    paths = sorted((run.folder / "samples").glob("*.gif"), reverse=True)
    if len(paths) > _MOST_SAMPLES:  # the newest, the first, and between them at even distances
        paths = [paths[round(i * (len(paths) - 1) / (_MOST_SAMPLES - 1))] for i in range(_MOST_SAMPLES)]
    figures, room = [], _MOST_BYTES
    for path in paths:
        size = path.stat().st_size
        source = _inside(path) if size <= room else f"samples/{path.name}"
        room -= size if size <= room else 0
        figures.append(f'<figure><img src="{source}" alt="sample"><figcaption>{path.stem}</figcaption></figure>')
    return figures


def _inside(path: Path) -> str:
    return f"data:image/gif;base64,{base64.b64encode(path.read_bytes()).decode()}"
