"""How much the picture changes from frame to frame where windows meet, against elsewhere.

    python tests/bench/seams.py [--frames 360] [--window 25] [--overlap 8] [--seed 0] [--loop-frames 60] [--out FOLDER]

With the built-in model, on the same noise: all frames together, windows as `msdv sample --window` has them (their
borders move from step to step, so any frame may be at one), and windows side by side, which is what seams look like.
Then two loops, in one window and in several. Change is the mean absolute difference of two frames that follow each
other, in levels of 255. `--out` keeps the videos, as gifs, and a strip of frames from around a border.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from msdv.data.video import write_video
from msdv.model.base import load_base
from msdv.model.diffusion import denoise, make_scheduler
from msdv.model.guidance import Guided, OneText
from msdv.model.long_noise import VideoNoise
from msdv.model.steering import flow_for
from msdv.model.temporal import build_video_unet, noise_schedule
from msdv.model.windows import LOOP_OVERLAP, Length, Windows

ENDS = 2
PROMPT = "white clouds drifting left over hills"


@dataclass(frozen=True)
class SideBySide(Length):
    """Windows that share nothing and stay where they are."""

    def starts(self, frames: int, step: int) -> list[int]:
        """The multiples of the window; the last as late as it fits."""
        assert self.window is not None
        return [min(start, frames - self.window) for start in range(0, frames, self.window)]


class Maker:
    """Videos of the built-in model."""

    def __init__(self, seed: int) -> None:
        device = torch.device("cpu")
        self.seed, self.base = seed, load_base("builtin", device=device, dtype=torch.float32)
        assert self.base.temporal is not None
        self.model, self.metadata = build_video_unet(self.base, self.base.temporal, channels_last=True)
        self.text = self.base.encode_prompts([PROMPT, ""])

    def noise(self, length: Length, frames: int) -> torch.Tensor:
        """As `msdv sample` draws it."""
        generator, side = torch.Generator().manual_seed(self.seed), self.base.sample_size // 8
        assert self.metadata is not None and self.metadata.motion is not None
        motion = self.metadata.motion
        source = VideoNoise((1, 4, frames, side, side), length, generator)
        flow, _ = flow_for(motion, "auto", PROMPT, side, side, generator)
        return source.mixed(flow, torch.tensor([motion.share]))

    def video(self, noise: torch.Tensor, length: Length) -> np.ndarray:
        """(f, h, w, 3), uint8."""
        texts = OneText(self.text[:1]), OneText(self.text[1:])
        guided = Guided(self.model, *texts, guidance=self.base.sampling.guidance)
        scheduler = make_scheduler(self.base.sampling.scheduler, noise_schedule(self.base, self.metadata))
        prediction = Windows(guided, length)
        latents = denoise(prediction, noise, scheduler=scheduler, steps=self.base.sampling.steps)
        return self.base.decode_latents(latents[0].transpose(0, 1))


def change(frames: np.ndarray, *, loop: bool = False) -> np.ndarray:
    """Between each frame and the next; in a loop also between the last and the first, which comes last."""
    following = np.roll(frames, -1, axis=0)
    return np.array(
        [np.abs(a.astype(int) - b).mean() for a, b in zip(frames, following, strict=True)][: None if loop else -1]
    )


def main() -> None:
    """Make the videos and print what is in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=360)
    parser.add_argument("--window", type=int, default=25)
    parser.add_argument("--overlap", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loop-frames", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    maker, length = Maker(args.seed), Length(args.window, args.overlap)
    for name, way in (
        ("one window", Length(None, LOOP_OVERLAP, loop=True)),
        ("windows", Length(args.window, args.overlap, loop=True)),
    ):
        frames = maker.video(maker.noise(way, args.loop_frames), way)
        changes = change(frames, loop=True)
        closing = changes[-1] / np.mean(changes[:-1])
        print(
            f"loop of {args.loop_frames}, {name}: last to first {closing:.3f} of elsewhere, "
            f"worst {changes.max() / np.median(changes):.3f} of the median",
            flush=True,
        )
        keep(args.out, f"loop-{name.replace(' ', '-')}", frames, at=0)
    print(f"windows of {args.window} that share {args.overlap}; change in levels, but for the video's ends")
    noise = maker.noise(length, args.frames)
    side_by_side = SideBySide(args.window)
    for name, way, count in (
        ("side by side", side_by_side, 4 * args.window),
        ("moving windows", length, args.frames),
        ("all together", Length(), args.frames),
    ):
        count = min(count, args.frames)
        started = time.perf_counter()
        frames = maker.video(noise[:, :, :count], way)
        # Without neighbours before or behind, the first and the last frame change more, however they are made.
        changes = change(frames)[ENDS:-ENDS]
        against = ""
        if way.window:
            at = [at_borders(changes, way, count, step) for step in range(maker.base.sampling.steps)]
            against = f"; at borders {min(at):.3f} to {max(at):.3f} of elsewhere"
        median = np.median(changes)
        print(
            f"{count} frames, {name:15} median {median:.2f}, worst {changes.max() / median:.3f} and least "
            f"{changes.min() / median:.3f} of it{against}; {time.perf_counter() - started:.0f} s",
            flush=True,
        )
        keep(args.out, f"{name.replace(' ', '-')}-{count}", frames, at=args.window * 2)


def at_borders(changes: np.ndarray, way: Length, frames: int, step: int) -> float:
    """Change where windows begin and end at a denoising step, against change elsewhere."""
    starts = np.array(way.starts(frames, step))
    borders = np.unique([starts, starts + way.together(frames)]) - 1 - ENDS
    borders = borders[(borders >= 0) & (borders < len(changes))]
    return float(np.mean(changes[borders]) / np.mean(np.delete(changes, borders)))


def keep(folder: Path | None, name: str, frames: np.ndarray, *, at: int) -> None:
    """The video, and the frames around one of them side by side."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / f"{name}.gif", frames, fps=12)
        strip = np.concatenate([frames[(at + i) % len(frames)] for i in range(-4, 4)], axis=1)
        Image.fromarray(strip).save(folder / f"{name}.png")


if __name__ == "__main__":
    main()
