"""What a video that is being denoised looks like so far, as a small picture.

Colours are nearly a linear function of latents: for Stable Diffusion 1.x, others' previews have a table of 4x3 factors.
Here the factors, of neighbours too, are fitted to the autoencoder at hand, to one frame that it decodes: so any will
do, and all other frames cost next to nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from msdv.files import write_file
from msdv.model.base import Base
from msdv.model.diffusion import Prediction, TrainingSchedule

MOST_FRAMES = 8
_MOST_PICTURES = 12  # in the course of a denoising
_SIDE = 160  # pixels, the long side of each frame in the strip
_FITTED = 64  # the side, in latents, of what the colours are fitted to
_RIDGE = 0.1


def preview_path(out: Path) -> Path:
    """Where the preview of a result is: beside it."""
    return out.with_name(out.name + ".preview.png")


@contextmanager
def preview_of(out: Path | None) -> Iterator["Preview"]:
    """Inside the block a preview of the result `out` may be written (of None: none); at its end, however it ends, it is
    removed."""
    shown = Preview(None if out is None else preview_path(out))
    try:
        yield shown
    finally:
        if shown.path is not None:
            with suppress(OSError):
                shown.path.unlink(missing_ok=True)


class Preview:
    """A strip of at most 8 frames in a PNG file, written anew every few steps. Where it can't be written nothing
    else happens: denoising goes on."""

    def __init__(self, path: Path | None) -> None:
        """None: there is to be no preview."""
        self.path = path

    @property
    def note(self) -> str:
        """For the progress bar."""
        return "" if self.path is None else f"preview: {self.path}"

    def watch(
        self, prediction: Prediction, base: Base, schedule: TrainingSchedule, steps: int, around: int = 0
    ) -> Prediction:
        """The same prediction, shown each time that it is asked for in one of the steps that are to be shown. It must
        be asked for all frames of the video together, and `around` more at each end that are not shown."""
        if self.path is None:
            return prediction
        path = self.path
        every, calls = -(-steps // _MOST_PICTURES), 0

        def watched(latents: Tensor, timestep: Tensor, frames: Tensor) -> Tensor:
            nonlocal calls
            predicted = prediction(latents, timestep, frames)
            if calls % every == 0:
                count = len(frames) - 2 * around
                chosen = torch.linspace(around, around + count - 1, min(MOST_FRAMES, count)).round().long()
                chosen = chosen.to(latents.device)
                clean = schedule.clean(latents[:, :, chosen], predicted[:, :, chosen], timestep)
                clean = clean[0].transpose(0, 1)
                middle = len(clean) // 2
                colours = latents_to_colours(base, clean[middle : middle + 1])
                strip = to_strip(clean.float().cpu(), colours)
                with suppress(OSError), write_file(path) as temporary:
                    strip.save(temporary)
            calls += 1
            return predicted

        return watched


def latents_to_colours(base: Base, latents: Tensor) -> Tensor:
    """(37, 3): what 3x3 latents, and one, are to be multiplied with to give red, green and blue from -1 to 1: the least
    squares fit to what the autoencoder makes of the middle of these (1, 4, h, w)."""
    height, width = latents.shape[-2:]
    top, left = max(0, height - _FITTED) // 2, max(0, width - _FITTED) // 2
    part = latents[:, :, top : top + _FITTED, left : left + _FITTED]
    wanted = F.adaptive_avg_pool2d(base.decode(part), (part.shape[-2], part.shape[-1])).cpu()
    known = _terms(part.float().cpu())
    # Slightly drawn to 0, where a picture of one colour leaves it open.
    known = torch.cat([known, _RIDGE * torch.eye(known.shape[1])])
    colours = torch.cat([wanted.permute(0, 2, 3, 1).reshape(-1, 3), torch.zeros(known.shape[1], 3)])
    return torch.linalg.lstsq(known, colours).solution


def to_strip(latents: Tensor, colours: Tensor) -> Image.Image:
    """A picture of frames side by side, from latents (n, 4, h, w)."""
    n, _, height, width = latents.shape
    pictures = (_terms(latents) @ colours).reshape(n, height, width, 3)
    pixels = pictures.nan_to_num().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    strip = Image.new("RGB", (n * size[0], size[1]))
    for index, frame in enumerate(pixels.numpy()):
        strip.paste(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC), (index * size[0], 0))
    return strip


def _terms(latents: Tensor) -> Tensor:
    """(n, 4, h, w) -> (n h w, 37): each latent with its neighbours, and one."""
    framed = F.pad(latents, (1, 1, 1, 1), mode="replicate")
    return F.pad(F.unfold(framed, 3).transpose(1, 2).flatten(0, 1), (0, 1), value=1.0)
