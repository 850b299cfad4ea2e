"""Make the rows of docs/experiments.md one after the other, and print their table.

    python recipes/experiments/run.py                        # everything, one seed after the other
    python recipes/experiments/run.py frames-25 frames-9     # some rows
    python recipes/experiments/run.py --list                 # the commands, and nothing else
    python recipes/experiments/run.py --table                # of what is there
    python recipes/experiments/run.py --picture rows.jpg     # their samples' frames side by side

To be started in the root of the repository. Everything goes into runs/experiments/: a folder a row and seed, with a
row.json when it is finished, which is then not made again. With one thread a row takes some minutes.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rows import RECIPE, ROWS, VIDEOS, WORK, Row

REFERENCE_CLIPS = 16


class CommandError(Exception):
    """A command failed."""


def main() -> None:
    """Data, rows, table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; not given: all")
    parser.add_argument("--seed", type=int, action="append", help="not given: those of each row")
    parser.add_argument("--list", action="store_true", help="print the commands")
    parser.add_argument("--table", action="store_true", help="print the table of what is finished")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write a picture of what is finished")
    parser.add_argument("--frames", type=int, default=25, help="of the samples in the picture")
    options = parser.parse_args()
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"{unknown[0]} is no row: choose of {', '.join(ROWS)}")
    rows = [ROWS[name] for name in options.rows or ROWS]
    seeds = sorted({seed for row in rows for seed in row.seeds} & set(options.seed or range(100)))
    if options.list:
        data = [command for name in VIDEOS for command in data_commands(name)]
        of_rows = (row.commands(seed) for seed in seeds for row in rows if seed in row.seeds)
        for command in (*data, *(command for commands in of_rows for command in commands)):
            print(shlex.join(command))
        return
    if options.picture:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        strips(rows, options.frames).save(options.picture, quality=88)
        return
    if not options.table:
        importlib.import_module("msdv.train")  # now: its seconds are no row's
        make_data()
        for seed in seeds:
            for row in rows:
                if seed in row.seeds and not (row.folder(seed) / "row.json").exists():
                    keep_row(row, seed)
    print(table(finished(rows)))


def data_commands(name: str) -> list[list[str]]:
    """What renders some clips and cuts them into frames."""
    videos, frames = (WORK / "videos" / name).as_posix(), (WORK / "frames" / name).as_posix()
    render = ["python", "-m", "msdv.data.synthetic", videos, "--fps", "5", *VIDEOS[name]]
    return [render, ["msdv", "prep", "--config", RECIPE.as_posix(), videos, frames]]


def make_data() -> None:
    """Render and cut what is not there."""
    for name in VIDEOS:
        if not (WORK / "frames" / name / "contact_sheet.jpg").exists():  # which is written last
            for command in data_commands(name):
                call(command)
    reference = WORK / "reference.json"
    if not reference.exists():
        from msdv.data.moving import make_reference

        clips = sorted(path for path in (WORK / "frames" / "300").iterdir() if path.is_dir() and path.name[0] != ".")
        shown = [clips[int(i)] for i in np.linspace(0, len(clips) - 1, REFERENCE_CLIPS)]
        made = make_reference([list(pictures(clip))[:25] for clip in shown])
        reference.write_text(made.model_dump_json(indent=1), encoding="utf-8")


def keep_row(row: Row, seed: int) -> None:
    """Make a row and write its row.json; where a command fails, with that."""
    print(f"== {row.name}, seed {seed}", flush=True)
    started, folder = time.time(), row.folder(seed)
    result: dict[str, Any] = {"row": row.name, "seed": seed, "commands": [*map(shlex.join, row.commands(seed))]}
    try:
        result |= make_row(row, seed)
    except CommandError as error:
        result["failed"] = str(error)
        print(error, flush=True)
    result["minutes"] = round((time.time() - started) / 60, 1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "row.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def make_row(row: Row, seed: int) -> dict[str, Any]:
    """Train, measure, sample; what came out. Raises CommandError."""
    folder = row.folder(seed)
    train = [*row.train(seed), "--overwrite"]  # of a row that was stopped, something may be there
    seconds = call(train)[1]
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in logged if "loss" in line]
    losses = [step["loss"] for step in steps if step["loss"] is not None]
    result: dict[str, Any] = {"motion": {}}
    result["train"] = {
        "cpu_seconds": round(seconds),
        "steps": len(losses),
        "skipped": steps[-1]["skipped"],
        "loss": float(np.mean(losses[-50:])),
        **({"loss_scale": steps[-1]["loss_scale"]} if "loss_scale" in steps[-1] else {}),
    }
    result["loss"] = {
        f"{clips}, {frames} frames": json.loads(call(row.evaluate(seed, clips, frames))[0])["losses"][0]
        for clips, frames in row.measured_of(seed)
    }
    for frames in row.lengths_of(seed):
        call([*row.sample(seed, frames), "--overwrite"])
        result["motion"][str(frames)] = measure_samples(folder, frames)
    return result


def call(command: list[str]) -> tuple[str, float]:
    """Run a command; what it printed, and the processor seconds it took. Raises CommandError where it fails."""
    print(shlex.join(command), flush=True)
    before, printed = sum(os.times()[:4]), io.StringIO()
    if command[0] == "msdv":  # here, so that torch is loaded once
        from msdv.cli import run

        with contextlib.redirect_stdout(printed):
            code = run(command[1:])
    else:
        done = subprocess.run([sys.executable, *command[1:]], stdout=subprocess.PIPE, text=True)
        code, _ = done.returncode, printed.write(done.stdout)
    if code == 130:  # Ctrl-C
        raise KeyboardInterrupt
    if code:
        raise CommandError(f"exit {code}: {shlex.join(command)}")
    return printed.getvalue(), sum(os.times()[:4]) - before


def measure_samples(folder: Path, frames: int) -> dict[str, Any]:
    """Numbers of the samples of each prompt, their mean, and the verdict."""
    from msdv.data.moving import Reference, measure, verdict
    from msdv.verdict import mean_numbers

    reference = Reference.model_validate_json((WORK / "reference.json").read_text(encoding="utf-8"))
    each = [measure(pictures(one), reference.regions) for one in sorted(folder.glob(f"sample-{frames}-*"))]
    return {**mean_numbers(each).as_dict(), "verdicts": [verdict(numbers, reference) for numbers in each]}


def pictures(folder: Path) -> Iterator[np.ndarray]:
    """The pictures in a folder, in order."""
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".jpg", ".png")):
        with Image.open(path) as picture:
            yield np.asarray(picture.convert("RGB"))


def strips(rows: list[Row], frames: int, shown: int = 7) -> Image.Image:
    """A line a row: frames of its samples of both prompts, evenly spaced, of the first seed."""
    lines = []
    for row in rows:
        folders = sorted(row.folder(row.seeds[0]).glob(f"sample-{frames}-*"))
        if not folders:
            continue
        label = Image.new("RGB", (110, 128), "white")
        ImageDraw.Draw(label).text((6, 58), row.name, "black")
        parts = [np.asarray(label)]
        for folder in folders:
            every = list(pictures(folder))
            parts += [every[int(i)] for i in np.linspace(0, len(every) - 1, shown)]
            parts.append(np.full((128, 6, 3), 255, np.uint8))
        lines.append(np.concatenate(parts[:-1], axis=1))
    return Image.fromarray(np.concatenate(lines))


def finished(rows: list[Row]) -> list[dict[str, Any]]:
    """What row.json says of each row and seed."""
    paths = [row.folder(seed) / "row.json" for row in rows for seed in row.seeds]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def table(results: list[Mapping[str, Any]]) -> str:
    """In Markdown: losses of each row and seed with the layers, and the motion of their samples."""
    head = ("row", "seed", "CPU s", "held out, 25 frames", "without", "others", "frames", "flow", "still", "warp error")
    head += ("change", "flicker", "fine", "drift", "verdicts")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        if "failed" in result:
            cells = [result["row"], result["seed"], result["failed"], *[""] * (len(head) - 3)]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
            continue
        losses = dict(result["loss"])
        main = losses.pop("held-out, 25 frames")
        others = "; ".join(f"{name}: {loss['on']:.4f} ({loss['off']:.4f})" for name, loss in losses.items())
        for frames, motion in (result["motion"] or {"-": {}}).items():
            cells = [result["row"], result["seed"], result["train"]["cpu_seconds"]]
            cells += [f"{main['on']:.4f}", f"{main['off']:.4f}", others, frames]
            names = ("flow", "flow_still", "warp_error", "change", "flicker", "fine_flicker", "colour_drift")
            cells += [f"{motion[name]:.2f}" if name in motion else "-" for name in names]
            cells += ["; ".join(verdict.split(" (")[0] for verdict in motion.get("verdicts", ()))]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
