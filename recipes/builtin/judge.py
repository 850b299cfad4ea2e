"""Judge the builtin base: every target of what ships, measured on prompts, seeds and clips that no training saw.

    python recipes/builtin/judge.py --out judged
    python recipes/builtin/judge.py --model runs/new/temporal.safetensors --out judged-new
    python recipes/builtin/judge.py --compare judged judged-new

Prints a table in markdown, also in OUT/table.md; all numbers are in OUT/judged.json, and what there is to see in
OUT/*.png. Real clips are rendered (msdv/data/synthetic.py) and go through nothing; "coded" are the same clips after
the autoencoder, the best that a model on its latents can do; "as trained on" they have been a video file and through
`msdv prep`, as all that a training sees. README.md has how long it takes; --quick makes about a third of the clips.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classifier import ASKED, NAMES, get_classifier, labelled_pictures
from clips import (
    FPS,
    SIZE,
    Made,
    Model,
    Wish,
    as_prepared,
    load_autoencoder,
    real_skies,
    render_clip,
    sample_clips,
    through_autoencoder,
)
from PIL import Image
from skyline import skyline_shift

from msdv.config import PrepConfig, TrainConfig
from msdv.data.flow import optical_flow
from msdv.data.moving import make_reference, measure
from msdv.data.prepare import prepare
from msdv.data.synthetic import write_sky_videos
from msdv.train import evaluate
from msdv.verdict import MOVING, STILL, MotionNumbers, Reference, mean_numbers
from msdv.weights import load_temporal

APART = 8  # frames between which drift is measured: the coder's grid holds fine detail back for the first few pixels
FORMS = (
    "{}",
    "clouds timelapse, {}",
    "beautiful clouds over hills, {}",
    "{} over the sea",
    "cinematic view of a forest, {}",
)
STEERED = ("clouds timelapse", "clouds over mountains, sunset", "night", "overcast sky over a field", "golden hour")
WORDED = (
    "timelapse of white clouds drifting {} over mountains, blue sky",
    "clouds moving {} over hills, sunset",
    "puffy clouds flying {}, night",
    "gray clouds drifting {} over a field, overcast",
)
REAL_SEED, LOSS_SEED, FIRST_SEED = 5_000, 987_654, 100  # of skies, of clips for the loss, of samples


@dataclass(frozen=True)
class Amount:
    """How much is sampled."""

    seeds: int = 10  # of each sky
    tries: int = 10  # of --motion, and of words
    longs: int = 8  # long clips, and as many short ones to compare them with
    loss_clips: int = 12
    short: int = 25  # frames
    long: int = 120
    pictures: int = 120  # skies that the classifier is tested on


QUICK = Amount(seeds=4, tries=6, longs=2, loss_clips=6)


@dataclass(frozen=True)
class Row:
    """A line of the table. Numbers that are None do not apply."""

    what: str
    target: str = ""
    found: float | str | None = None
    real: float | None = None
    coded: float | None = None
    prepared: float | None = field(default=None, kw_only=True)
    good: bool | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Clips:
    """What is measured of some clips."""

    numbers: MotionNumbers
    drift: float
    """Mean of each clip's drift without its sign, pixels a frame."""
    ends: float
    """Change from the first frame to the second and from the last but one to the last, by that of the others."""
    searched: float
    """Flow of the ground by that of the sky, of all that the search for flow finds, seen or not."""
    skyline: float | None = None


@dataclass
class Judged:
    """Rows of the table, and whatever else was measured."""

    name: str
    rows: list[Row] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)


class Judge:
    """Samples and measures, part by part."""

    def __init__(self, model: Model, out: Path, work: Path, processes: int, amount: Amount) -> None:
        self._model, self._out, self._work, self._processes = model, out, work, processes
        self._amount = amount
        self.judged = Judged(out.name)
        self._autoencoder = load_autoencoder(model.base)
        # Four of each sky have every speed as often as the training clips.
        real = [
            render_clip(sky, amount.short) for i, time in enumerate(ASKED) for sky in real_skies(4, REAL_SEED + i, time)
        ]
        self._reference: Reference = make_reference(real)
        self._real = self._measure(real)
        self._coded = self._measure(through_autoencoder(self._autoencoder, clip) for clip in real)
        self._prepared = self._measure(as_prepared(real))

    def run(self) -> Iterator[Judged]:
        """Everything, in the order of the table: what is known so far, after each part."""
        started = time.monotonic()
        for part in (self.motion, self.long, self.steering, self.words, self.loss, self.cost):
            part()
            self.judged.numbers["seconds"] = round(time.monotonic() - started)
            print(f"{part.__name__}: done after {self.judged.numbers['seconds']} s", file=sys.stderr, flush=True)
            yield self.judged

    def motion(self) -> None:
        """Clips of every sky: how they move, and what their skies are."""
        wishes = [
            Wish(FORMS[seed % len(FORMS)].format(name), FIRST_SEED + seed, self._amount.short)
            for name in ASKED
            for seed in range(self._amount.seeds)
        ]
        self._made = self._sample(wishes, "skies")
        found = self._measure(made.frames for made in self._made)
        real, coded = self._real, self._coded
        moves, still = _value(found, "flow_moving"), _value(found, "flow_still")
        usual = _value(real, "flow_moving")
        near = abs(moves / usual - 1) <= 0.25
        self._add("sky moves, frame to frame, pixels", "within 25 % of real", "flow_moving", found, near)
        near = abs(found.drift / real.drift - 1) <= 0.25
        drifts = (clips.drift for clips in (found, real, coded))
        self._row(f"sky drifts, over {APART} frames, pixels a frame", "within 25 % of real", *drifts, good=near)
        self._add("ground moves, frame to frame, pixels", "", "flow_still", found)
        ways = (found, real, coded, self._prepared)
        shares = [_value(clips, "flow_still") / _value(clips, "flow_moving") for clips in ways]
        self._row("ground by sky", "below 0.1", *shares[:3], prepared=shares[3], good=still < 0.1 * moves)
        searched = (clips.searched for clips in (found, real, coded))
        self._row("… where nothing can be seen to move too", "", *searched, prepared=self._prepared.searched)
        change, usual, trained = (_value(clips, "warp_error") for clips in (found, real, self._prepared))
        self._add("change along the motion, levels", "at most 1.5x real", "warp_error", found, change <= 1.5 * usual)
        self._row("… by clips as trained on", "at most 1.5", change / trained, good=change <= 1.5 * trained)
        ends = (clips.ends for clips in (found, real, coded))
        self._row("change at first and last frame by the others", "at most 1.25", *ends, good=found.ends <= 1.25)
        for name, what in (("fine_flicker", "flicker of pixels"), ("flicker", "flicker of areas")):
            self._add(what, "", name, found)
        self._classify(wishes)

    def _classify(self, wishes: Sequence[Wish]) -> None:
        classifier = get_classifier(self._work / "classifier.pt")
        pictures, labels = labelled_pictures(self._amount.pictures, REAL_SEED)
        coded = through_autoencoder(self._autoencoder, pictures)
        for among, what in ((ASKED, "of the four"), (NAMES, "of six, golden hour and storm too")):
            chosen = [i for i, label in enumerate(labels) if label in among]
            known = [labels[i] for i in chosen]
            right = [
                np.mean([a == b for a, b in zip(classifier.name(frames[chosen], among), known, strict=True)])
                for frames in (pictures, coded)
            ]
            shares, named = {}, {}
            for sky in ASKED:
                names = [
                    name
                    for wish, made in zip(wishes, self._made, strict=True)
                    if sky in wish.prompt
                    for name in classifier.name(made.frames[:: max(1, self._amount.short // 5)], among)
                ]
                named[sky] = Counter(names)
                shares[sky] = named[sky][sky] / len(names)
            text = f"{np.mean([*shares.values()]):.1%}"
            each = ", ".join(f"{sky} {share:.0%}" for sky, share in shares.items())
            good = min(shares.values()) >= 0.9
            self.judged.rows.append(Row(f"sky named rightly, {what}", "9 in 10", text, *map(float, right), good=good))
            self.judged.rows.append(Row(f"… each, {what}", "", each))
            self.judged.numbers[f"named {what}"] = named

    def long(self) -> None:
        """120 frames by the numbers of 25, of the same prompts and seeds."""
        prompts = (FORMS[i % len(FORMS)].format(ASKED[i % len(ASKED)]) for i in range(self._amount.longs))
        wishes = [Wish(prompt, FIRST_SEED + 20 + i, self._amount.long) for i, prompt in enumerate(prompts)]
        found = self._measure((made.frames for made in self._sample(wishes, "long")), lines=True)
        begun = [replace(wish, frames=self._amount.short) for wish in wishes]
        parts = self._measure(made.frames for made in self._sample(begun, "long-short"))
        # Two of each sky, and every speed as often as in the training clips.
        skies = [real_skies(4, REAL_SEED + i, name)[turn % 4] for i, name in enumerate(ASKED) for turn in (i, i + 1)]
        real = self._measure((render_clip(sky, self._amount.long) for sky in skies), lines=True)
        several = {"sampled": found, "short": parts, "real": real}
        self.judged.numbers["long"] = {name: clips.numbers.as_dict() for name, clips in several.items()}
        for name, what in (
            ("flow_moving", "sky moves"),
            ("flow_still", "ground moves"),
            ("warp_error", "change along the motion"),
            ("fine_flicker", "flicker of pixels"),
        ):
            long, short = _value(found, name), _value(parts, name)
            good = abs(long / short - 1) <= 0.25 if name == "flow_moving" else long <= 1.25 * short
            target = f"as {self._amount.short} frames: {short:.3g}"
            self._row(f"{what}, {self._amount.long} frames", target, long, _value(real, name), good=good)
        self._row("colours drift, first to last tenth, levels", "", *(_value(c, "colour_drift") for c in (found, real)))
        assert found.skyline is not None and real.skyline is not None
        good = found.skyline <= max(1.0, 1.5 * real.skyline)
        self._row("skyline wanders, rows", "below 1", found.skyline, real.skyline, good=good)

    def steering(self) -> None:
        """`--motion left` and `--motion right` at the speed of `auto`."""
        wishes = [
            Wish(
                STEERED[i % len(STEERED)],
                FIRST_SEED + 50 + i,
                self._amount.short,
                ("right", "left")[(i + i // len(STEERED)) % 2],
            )
            for i in range(self._amount.tries)
        ]
        drifts = [self._drift(made.frames) for made in self._sample(wishes, "steered")]
        obeyed = sum((drift > 0) == (wish.motion == "right") for wish, drift in zip(wishes, drifts, strict=True))
        speed = float(np.abs(drifts).mean())
        tries = len(wishes)
        self._row("--motion obeyed", f"{tries} of {tries}", f"{obeyed} of {tries}", good=obeyed == tries)
        good = abs(speed / self._real.drift - 1) <= 0.25
        self._row(
            "drift with --motion, pixels a frame",
            "within 25 % of real",
            speed,
            self._real.drift,
            self._coded.drift,
            good=good,
        )
        self.judged.numbers["steered"] = [asdict(wish) | {"drift": d} for wish, d in zip(wishes, drifts, strict=True)]

    def words(self) -> None:
        """Left and right by the prompt alone, the noise saying nothing."""
        wishes = [
            Wish(WORDED[i // 2 % len(WORDED)].format(side), FIRST_SEED + 80 + i // 2, self._amount.short, "none")
            for i, side in enumerate(("left", "right") * self._amount.tries)
        ][: self._amount.tries]
        drifts = [self._drift(made.frames) for made in self._sample(wishes, "worded")]
        right = sum((drift > 0) == ("right" in wish.prompt) for wish, drift in zip(wishes, drifts, strict=True))
        self._row("direction by words alone", "no target; chance is half", f"{right} of {self._amount.tries}")
        self._row("… drift, pixels a frame", "", float(np.abs(drifts).mean()), self._real.drift, self._coded.drift)
        self.judged.numbers["worded"] = [asdict(wish) | {"drift": d} for wish, d in zip(wishes, drifts, strict=True)]

    def loss(self) -> None:
        """On clips never trained on, with the temporal layers and without."""
        folder = self._work / f"held-out-{self._amount.loss_clips}"
        if not (folder / "frames").exists():
            write_sky_videos(folder / "videos", self._amount.loss_clips, seconds=4, size=SIZE, fps=FPS, seed=LOSS_SEED)
            prepare(
                PrepConfig(
                    videos=folder / "videos", frames=folder / "frames", size=SIZE, trim_start=0, trim_end=0, workers=1
                )
            )
        values = {"data": folder / "frames", "base": self._model.base, "init": self._model.model or "auto"}
        values |= {"frames": 16, "evaluate": True, "device": "cpu"}
        losses = evaluate(TrainConfig.model_validate(values)).losses
        for loss in losses:
            independent = loss.noise == "independent"
            target = "at most 0.75" if independent else ""
            good = loss.on <= 0.75 * loss.off if independent else None
            self._row(f"held-out loss, layers on by off, {loss.noise} noise", target, loss.on / loss.off, good=good)
            self._row(f"… its flicker, {loss.noise} noise", "", loss.flicker_on / loss.flicker_off)
        self.judged.numbers["losses"] = [loss.as_dict() for loss in losses]

    def cost(self) -> None:
        """Parameters, memory and speed."""
        from msdv.run import BUILTIN  # where the layers are that come with it

        weights = Path(self._model.model) if self._model.model else BUILTIN / "temporal.safetensors"
        state, metadata = load_temporal(weights)
        self._row("architecture", "", metadata.arch)
        self._row("temporal parameters, millions", "", sum(t.numel() for t in state.values()) / 1e6)
        seconds = float(np.mean([made.seconds for made in self._made]))
        self._row("processor seconds a frame, one core", "", seconds / self._amount.short)
        self._row(f"peak memory, {self._amount.short} frames, GiB", "", self._made[0].peak / 2**30)
        self.judged.numbers["trained steps"] = metadata.steps

    def _sample(self, wishes: Sequence[Wish], name: str) -> list[Made]:
        made = list(sample_clips(self._model, wishes, self._processes))
        _write_sheet([m.frames for m in made], self._out / f"{name}.png")
        return made

    def _measure(self, clips: Iterable[np.ndarray], lines: bool = False) -> Clips:
        numbers, drifts, ends, shifts, searched = [], [], [], [], []
        for clip in clips:
            numbers.append(measure(clip, self._reference.regions))
            drifts.append(abs(self._drift(clip)))
            searched.append(self._search(clip))
            changes = np.abs(clip[1:].astype(np.int16) - clip[:-1]).mean((1, 2, 3))
            ends.append((changes[0] + changes[-1]) / 2 / max(changes[1:-1].mean(), 0.01))
            if lines:
                shifts.append(skyline_shift(clip))
        skyline = float(np.mean(shifts)) if lines else None
        sky, ground = np.mean(searched, 0)
        drift, end = float(np.mean(drifts)), float(np.mean(ends))
        return Clips(mean_numbers(numbers), drift, end, float(ground / sky), skyline)

    def _search(self, clip: np.ndarray) -> tuple[float, float]:
        """Mean length of the flow from frame to frame, of sky and ground."""
        length = np.mean([np.linalg.norm(optical_flow(*pair), axis=-1) for pair in itertools.pairwise(clip[:9])], 0)
        kinds = np.array([list(row) for row in self._reference.regions])
        sky, ground = (
            length[np.kron(kinds == kind, np.ones((SIZE // len(kinds),) * 2, bool))] for kind in (MOVING, STILL)
        )
        return float(sky.mean()), float(ground.mean())

    def _drift(self, clip: np.ndarray) -> float:
        """How far the sky goes sideways, pixels a frame, positive to the right: mean flow where real clips move."""
        cells = np.array([list(row) for row in self._reference.regions]) == MOVING
        moving = np.kron(cells, np.ones((SIZE // len(cells),) * 2, bool))
        apart = min(APART, len(clip) // 2)
        pairs = zip(clip[:-apart:2], clip[apart::2], strict=False)
        return float(np.mean([optical_flow(*pair)[..., 0][moving].mean() for pair in pairs])) / apart

    def _add(self, what: str, target: str, name: str, found: Clips, good: bool | None = None) -> None:
        values = (_value(clips, name) for clips in (found, self._real, self._coded))
        self._row(what, target, *values, prepared=_value(self._prepared, name), good=good)

    def _row(
        self,
        what: str,
        target: str,
        found: float | str,
        real: float | None = None,
        coded: float | None = None,
        *,
        prepared: float | None = None,
        good: bool | None = None,
    ) -> None:
        good = None if good is None else bool(good)
        self.judged.rows.append(Row(what, target, found, real, coded, prepared=prepared, good=good))


def make_table(several: Sequence[Judged]) -> str:
    """The table in markdown, with a column a model. Real and coded clips are those of the first."""
    first, *others = several
    found = {judged.name: {row.what: row for row in judged.rows} for judged in several}
    lines = [
        f"| what | target | real clips | as trained on | coded | {' | '.join(judged.name for judged in several)} |",
        "|---" * (5 + len(several)) + "|",
    ]
    named = dict.fromkeys(row.what for judged in several for row in judged.rows)
    for what in named:
        rows = [found[judged.name].get(what) for judged in several]
        row = next(row for row in rows if row is not None)
        cells = ["" if each is None else _word(each.found) + _mark(each.good) for each in rows]
        known = " | ".join(_word(value) for value in (row.real, row.prepared, row.coded))
        lines.append(f"| {what} | {row.target} | {known} | {' | '.join(cells)} |")
    missed = {j.name: sum(row.good is False for row in j.rows) for j in (first, *others)}
    lines += ["", *(f"{name}: {count} targets missed" for name, count in missed.items())]
    return "\n".join(lines)


def read_judged(folder: Path) -> Judged:
    """What an earlier run wrote."""
    values = json.loads((folder / "judged.json").read_text(encoding="utf-8"))
    return Judged(folder.name, [Row(**row) for row in values["rows"]], values["numbers"])


def main() -> None:
    """Judge, or compare what was judged."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="temporal layers, as in msdv sample; by default those that ship")
    parser.add_argument("--base", default="builtin")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--window", type=int, help="for 120 frames, where the layers can't take them at once")
    parser.add_argument("--out", type=Path, default=Path("judged"))
    parser.add_argument(
        "--work", type=Path, help="what is made once: classifier, held-out clips; by default beside OUT"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer clips of everything")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="OUT", help="one table of what was judged before")
    options = parser.parse_args()
    if options.compare:
        print(make_table([read_judged(folder) for folder in options.compare]))
        return
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    model = Model(options.base, options.model, options.steps, options.guidance, options.window)
    work = options.work or options.out.parent / "judge-work"
    settings = {"model": asdict(model), "quick": options.quick}
    for judged in Judge(model, options.out, work, options.processes, QUICK if options.quick else Amount()).run():
        # After each part: a run that is stopped has not been for nothing.
        content = {**settings, "rows": [asdict(row) for row in judged.rows], "numbers": judged.numbers}
        (options.out / "judged.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (options.out / "table.md").write_text(make_table([judged]) + "\n", encoding="utf-8")
    print((options.out / "table.md").read_text(encoding="utf-8"), end="")


def _write_sheet(clips: Sequence[np.ndarray], path: Path, columns: int = 8) -> None:
    """A row a clip: frames spread over its length."""
    rows = [np.concatenate([clip[i] for i in np.linspace(0, len(clip) - 1, columns).astype(int)], 1) for clip in clips]
    Image.fromarray(np.concatenate(rows)).save(path)


def _value(clips: Clips, name: str) -> float:
    value = getattr(clips.numbers, name)
    return float("nan") if value is None else float(value)


def _word(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def _mark(good: bool | None) -> str:
    return "" if good is None else " ✓" if good else " ✗"


if __name__ == "__main__":
    main()
