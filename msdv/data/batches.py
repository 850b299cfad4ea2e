"""Which window of which clip a training step sees: a function of the seed and the step alone.

So a resumed training needs no saved position and no saved random state, and sees what it would have seen.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msdv.data.cache import LatentCache, TextCache, mirror_caption
from msdv.data.clips import Clip, video_of


def generator_for(*key: int | str) -> torch.Generator:
    """A random generator that is a function of `key`; streams of different keys are independent."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def hold_out(clips: Sequence[Clip], share: float) -> tuple[list[Clip], list[Clip]]:
    """(training clips, held-out clips). Clips of one video are on the same side. Of five clips or more, if any are to
    be held out, at least one is, and never all; the choice depends on the clips' names alone, so that it stays the same
    from run to run."""
    count = max(1, round(share * len(clips))) if share and len(clips) >= 5 else 0
    videos: dict[str, list[Clip]] = {}
    for clip in clips:
        videos.setdefault(clip.source, []).append(clip)
    names = {source: min(video_of(clip.name) for clip in group) for source, group in videos.items()}
    ranked = sorted(videos, key=lambda source: hashlib.sha256(names[source].encode()).digest())
    count = min(count, len(clips) - 1)
    held: set[str] = set()
    for source in ranked:
        if len(held) + len(videos[source]) <= count:
            held |= {clip.name for clip in videos[source]}
    if count and not held and len(videos) > 1:  # each has more clips than wanted: the one with the fewest
        held = {clip.name for clip in min((videos[source] for source in ranked), key=len)}
    return with_videos_of(clips, held)


def with_videos_of(clips: Sequence[Clip], held: Collection[str]) -> tuple[list[Clip], list[Clip]]:
    """(training clips, held-out clips), where the clips named in `held` and all others of their videos are held out."""
    sources = {clip.source for clip in clips if clip.name in held}
    return [c for c in clips if c.source not in sources], [c for c in clips if c.source in sources]


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

    def names(self, number: int) -> list[str]:
        """The clips of batch `number`."""
        return [self._clips[self._index(number * self._batch_size + i)].name for i in range(self._batch_size)]

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self._clips))
        order = torch.randperm(len(self._clips), generator=generator_for("epoch", self._seed, epoch))
        return int(order[place])

    def _item(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        index = self._index(position)
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
