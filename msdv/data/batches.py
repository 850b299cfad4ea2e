"""Which window of which clip a training step sees: a function of the seed and the step alone.

So a resumed training needs no saved position and no saved random state, and sees what it would have seen.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msdv.data.cache import LatentCache, TextCache, mirror_caption
from msdv.data.clips import Clip


def generator_for(*key: int | str) -> torch.Generator:
    """A random generator that is a function of `key`; streams of different keys are independent."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def hold_out(clips: Sequence[Clip], share: float) -> tuple[list[Clip], list[Clip]]:
    """(training clips, held-out clips). At least one is held out of five or more, if any are to be; the choice
    depends on the clips' names alone, so that it stays the same from run to run."""
    count = min(len(clips) - 1, max(1, round(share * len(clips)))) if share and len(clips) >= 5 else 0
    ranked = sorted(clips, key=lambda clip: hashlib.sha256(clip.name.encode()).digest())
    held = {clip.name for clip in ranked[:count]}
    return [c for c in clips if c.name not in held], [c for c in clips if c.name in held]


@dataclass(frozen=True)
class Batch:
    """Some clips' windows with what belongs to them."""

    latents: Tensor
    """(b, 4, f, h, w), float32."""
    text: Tensor
    """(b, n, d), float32."""
    row_velocity: Tensor
    """(b, h), pixels per frame."""


class ClipBatches:
    """Training batches from cached clips."""

    def __init__(
        self,
        clips: Sequence[Clip],
        latents: LatentCache,
        text: TextCache,
        *,
        frames: int,
        batch_size: int,
        caption_dropout: float,
        seed: int,
    ) -> None:
        self._clips = clips
        self._latents = latents
        self._text = text
        self._frames = frames
        self._batch_size = batch_size
        self._caption_dropout = caption_dropout
        self._seed = seed
        self._velocities = [latents.row_velocity(clip) for clip in clips]

    def batch(self, number: int) -> Batch:
        """Batch `number` of the whole training, counted over all processes and accumulation steps. Every clip is seen
        once before any is seen again."""
        return self._collate([self._item(number * self._batch_size + i) for i in range(self._batch_size)])

    def _item(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        epoch, place = divmod(position, len(self._clips))
        order = torch.randperm(len(self._clips), generator=generator_for("epoch", self._seed, epoch))
        index = int(order[place])
        generator = generator_for("item", self._seed, position)
        clip = self._clips[index]
        start = int(torch.randint(len(clip) - self._frames + 1, (), generator=generator))
        mirrored = self._latents.flip and bool(torch.rand((), generator=generator) < 0.5)
        caption = mirror_caption(clip.caption) if mirrored else clip.caption
        if torch.rand((), generator=generator) < self._caption_dropout:
            caption = ""
        return self._window(index, start, mirrored, caption)

    def _window(self, index: int, start: int, mirrored: bool, caption: str) -> tuple[Tensor, Tensor, Tensor]:
        latents = self._latents.window(self._clips[index], start, self._frames, mirrored)
        velocity = self._velocities[index]
        return latents, self._text[caption], -velocity if mirrored else velocity

    def middle(self, index: int) -> Batch:
        """The middle window of a clip, with its caption: what evaluation looks at."""
        clip = self._clips[index]
        return self._collate([self._window(index, (len(clip) - self._frames) // 2, False, clip.caption)])

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._clips)

    @property
    def velocities(self) -> Tensor:
        """(clips, rows) pixels per frame."""
        return torch.stack(self._velocities)

    @staticmethod
    def _collate(items: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Batch:
        latents, text, velocity = zip(*items, strict=True)
        return Batch(torch.stack(latents), torch.stack(text), torch.stack(velocity))
