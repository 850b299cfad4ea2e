"""The rows of docs/experiments.md: what each changes of experiments.toml, and its commands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path("recipes/experiments")
"""From the root of the repository, where all commands are run."""
RECIPE = HERE / "experiments.toml"
WORK = Path("runs/experiments")
VIDEOS = {
    "12": ("--count", "12", "--seconds", "9", "--seed", "100"),
    "48": ("--count", "48", "--seconds", "9", "--seed", "100"),
    "300": ("--count", "300", "--seconds", "9", "--seed", "100"),
    "held-out": ("--count", "6", "--seconds", "9", "--seed", "900"),
    "long": ("--count", "2", "--seconds", "24", "--seed", "901"),
}
"""Folders of rendered clips. The 12 are among the 48, these among the 300; the others show other skies."""


@dataclass(frozen=True)
class Row:
    """One training, once a seed."""

    name: str
    options: Sequence[str] = ()
    """Of `msdv train`, beside the recipe."""
    script: str = ""
    """What stands for `msdv`, where msdv itself can't do it."""
    again: bool = False
    """Whether that script is needed to evaluate and sample too."""
    pipeline: bool = False
    """Whether the result has an image model of its own."""
    measured: Sequence[tuple[str, int]] = (("held-out", 25),)
    """Clips, and how many frames of each, that the loss is measured on; with further seeds only the first."""
    lengths: Sequence[int] = (25,)
    """Frames of the samples, of the first seed."""
    seeds: Sequence[int] = (0, 1)

    def folder(self, seed: int) -> Path:
        """Where a training writes."""
        return WORK / self.name / f"seed-{seed}"

    def commands(self, seed: int) -> list[list[str]]:
        """All of them, in order."""
        measured = [self.evaluate(seed, clips, frames) for clips, frames in self.measured_of(seed)]
        return [self.train(seed), *measured, *(self.sample(seed, frames) for frames in self.lengths_of(seed))]

    def measured_of(self, seed: int) -> Sequence[tuple[str, int]]:
        """What the loss of one seed is measured on."""
        return self.measured if seed == self.seeds[0] else self.measured[:1]

    def lengths_of(self, seed: int) -> Sequence[int]:
        """Frames of the samples of one seed."""
        return self.lengths if seed == self.seeds[0] else ()

    def train(self, seed: int) -> list[str]:
        """The command that trains."""
        given = ["--out", self.folder(seed).as_posix(), "--seed", str(seed)]
        return [*self._msdv(self.script), "train", "--config", RECIPE.as_posix(), *self.options, *given]

    def evaluate(self, seed: int, clips: str, frames: int) -> list[str]:
        """The command that measures the loss on `frames` frames of each of some clips."""
        folder = self.folder(seed)
        init = ["--base", (folder / "pipeline").as_posix(), "--init", "auto"]
        given = ["--evaluate", "--json", "--data", (WORK / "frames" / clips).as_posix(), "--frames", str(frames)]
        given += init if self.pipeline else ["--init", folder.as_posix()]
        return [*self._msdv(self.script if self.again else ""), "train", "--config", RECIPE.as_posix(), *given]

    def sample(self, seed: int, frames: int) -> list[str]:
        """The command that samples the prompts."""
        folder = self.folder(seed)
        given = ["--model", (folder / "pipeline" if self.pipeline else folder).as_posix(), "--frames", str(frames)]
        given += ["--out", (folder / f"sample-{frames}").as_posix()]
        given += ["--window", "25"] if "motion-module" in self.options and frames > 32 else []
        return [*self._msdv(self.script if self.again else ""), "sample", "--config", RECIPE.as_posix(), *given]

    @staticmethod
    def _msdv(script: str) -> list[str]:
        return ["python", (HERE / script).as_posix()] if script else ["msdv"]


_FAR = (("held-out", 25), ("long", 120))
ROWS = {
    row.name: row
    for row in (
        # What the others are compared with: a third seed says more of what chance does.
        Row("frames-25", measured=(*_FAR, ("held-out", 9)), lengths=(25, 120), seeds=(0, 1, 2)),
        # As many frames seen: 120 steps of 25 frames, 111 of 3 times 9.
        Row(
            "frames-9",
            ("--frames", "9", "--batch-size", "3", "--steps", "111"),
            measured=(("held-out", 25), ("held-out", 9)),
        ),
        Row("clips-12", ("--data", "runs/experiments/frames/12")),
        Row("unfrozen", script="unfrozen.py", pipeline=True),
        Row("positions", script="positions.py", again=True, measured=_FAR),
        Row("norm-joint", ("--group-norm", "joint"), measured=_FAR),
        Row("motion-module", ("--arch", "motion-module")),
        Row("clips-48", ("--data", "runs/experiments/frames/48")),
        # Compare with clips-12: in float32 latents are cached anew, which takes its time.
        Row("float32", ("--data", "runs/experiments/frames/12", "--no-bf16")),
        Row("float16", ("--data", "runs/experiments/frames/12", "--no-bf16"), script="half.py", seeds=(0,)),
        # Four times as long, for what could turn around.
        Row("frames-25-long", ("--steps", "480"), seeds=(0,), lengths=()),
        Row("frames-9-long", ("--frames", "9", "--batch-size", "3", "--steps", "444"), seeds=(0,), lengths=()),
        Row("clips-12-long", ("--data", "runs/experiments/frames/12", "--steps", "480"), seeds=(0,), lengths=()),
        Row("unfrozen-long", ("--steps", "480"), script="unfrozen.py", pipeline=True, seeds=(0,), lengths=()),
    )
}
