"""sample: a prompt to a moving picture."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from msdv.config import SampleConfig
from msdv.data.video import output_format
from msdv.errors import UsageError
from msdv.files import refuse_overwrite, refuse_unwritable
from msdv.model.preview import preview_path
from msdv.recipe import settings_beside
from msdv.sampling.moving import MotionReport
from msdv.sampling.options import check_options
from msdv.sampling.repeat import input_files, repeated
from msdv.sampling.sampler import Sampler
from msdv.sampling.shots import check_list, is_finished, make_all, own_share, shots_of

LARGE_GIF = 15_000_000  # bytes; what many sites refuse


@dataclass(frozen=True)
class SampleReport:
    """What was made."""

    outs: Sequence[Path]
    frames: int
    seconds: float
    there: int = 0
    """How many were there before."""
    before: int = 0
    """Frames of the video that was gone on with, which come first."""
    motion: MotionReport | None = None
    """How they move, with --report."""

    def json(self) -> str:
        """How they move, as one JSON object: see `MotionReport`. There must be a report."""
        assert self.motion is not None
        return self.motion.json()

    def lines(self) -> list[str]:
        """For the user."""
        return [*self._made(), *(self.motion.lines() if self.motion else [])]

    def _made(self) -> list[str]:
        if len(self.outs) != 1 or self.there:
            places = f": {self.outs[0]} to {self.outs[-1].name}" if self.outs else ""
            there = f", {self.there} were there already" if self.there else ""
            return [f"{len(self.outs) - self.there} videos in {self.seconds:.0f} s{there}{places}"]
        (out,) = self.outs
        size = sum(p.stat().st_size for p in out.iterdir()) if out.is_dir() else out.stat().st_size
        frames = f"{self.frames} frame{'s'[: self.frames != 1]}"
        if self.before:
            frames = f"{self.before + self.frames} frames, {self.frames} of them new,"
        lines = [f"{frames} in {self.seconds:.0f} s: {out} ({size / 1e6:.1f} MB)"]
        if out.suffix.lower() == ".gif" and size > LARGE_GIF:
            lines.append(
                "a gif of this size loads slowly: an .mp4 or .webp would take a small part of it; --dither none, a "
                "smaller --size or fewer --frames make it smaller"
            )
        return lines


@torch.no_grad()
def sample(config: SampleConfig) -> SampleReport:
    """Denoise a video of `config.frames` frames and write it. Raises UsageError and MsdvError with the next step."""
    started = time.perf_counter()
    config, origin = repeated(config)
    check_list(config)
    check_options(config)
    every = shots_of(config)
    shots = own_share(every)
    for shot in every:
        _check(shot, several=config.prompts is not None)
    sampler = Sampler(config)
    config, shots = sampler.with_frames(config), [sampler.with_frames(shot) for shot in shots]
    if origin is not None:
        origin.check(model_hash=sampler.model_hash, base_hash=sampler.base.unet_hash)
    sampler.encode_texts(shots)
    if config.prompts is None:
        earlier = _stamp(config.out)
        try:
            sampler.make(config, last=True)
        except KeyboardInterrupt:
            what = "nothing" if _stamp(config.out) == earlier else config.out
            raise KeyboardInterrupt(f"interrupted: {what} was written") from None
        there = 0
    else:
        done = make_all(shots, sampler.has_made, sampler.make)
        there = len(done.there)
    sampler.say_notes()
    seconds = time.perf_counter() - started
    motion = sampler.report if config.report else None
    return SampleReport([shot.out for shot in shots], config.frames, seconds, there, sampler.before, motion)


def _check(config: SampleConfig, several: bool) -> None:
    """Raise UsageError for a result that can't be written, before the work. Of `several` some may be there."""
    suffix = output_format(config.out)
    if not (several and is_finished(config.out, {"prompt": config.prompt}, config.overwrite)):
        refuse_overwrite(config.out, config.overwrite)
        if suffix:
            refuse_overwrite(settings_beside(config.out), config.overwrite)
    refuse_unwritable(config.out)
    for _, path in input_files(config):
        if config.out.resolve() == path.resolve():
            raise UsageError(f"{config.out} is what the video is made of, and would be replaced: choose another -o")
    if config.preview and preview_path(config.out).is_dir():
        raise UsageError(f"{preview_path(config.out)} is a folder, where --preview writes: choose another -o")


def _stamp(out: Path) -> tuple[int, int] | None:
    """Changes when a result is written."""
    return (out.stat().st_ino, out.stat().st_mtime_ns) if out.exists() else None
