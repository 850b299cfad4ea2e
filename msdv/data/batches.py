"""Which window of which clip a training step sees: a function of the seed and the step alone.

So a resumed training needs no saved position and no saved random state, and sees what it would have seen.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msdv.config import keyframe_distance
from msdv.data.cache import FlowCache, LatentCache, TextCache, mirror_caption
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
    flow: Tensor | None
    """(b, f-1, 2, 2h, 2w), pixels from each frame to the next, to the right and down; None where nobody needs it."""
    given: Tensor
    """(b, f) bool: frames that the model is shown clean (--condition)."""


_Item = tuple[Tensor, Tensor, Tensor | None, Tensor]
"""What a batch holds, of one clip."""
_ONE_FRAME = 0.6
"""With --condition first-frame: how often only the first one is given, of the clips that are shown so; else the first
two to eight, for going on with a video. After a trial on sky timelapses."""
MOST_FIRST_FRAMES = 8


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
        condition: str = "none",
        condition_share: float = 0.0,
        flow: FlowCache | None = None,
    ) -> None:
        self._clips = clips
        self._latents = latents
        self._text = text
        self._frames = frames
        self._batch_size = batch_size
        self._caption_dropout = caption_dropout
        self._seed = seed
        self._condition, self._condition_share = condition, condition_share
        self._flow = flow

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

    def _item(self, position: int) -> _Item:
        index = self._index(position)
        generator = generator_for("item", self._seed, position)
        clip = self._clips[index]
        start = int(torch.randint(len(clip) - self._frames + 1, (), generator=generator))
        mirrored = self._latents.flip and bool(torch.rand((), generator=generator) < 0.5)
        caption = mirror_caption(clip.caption) if mirrored else clip.caption
        if torch.rand((), generator=generator) < self._caption_dropout:
            caption = ""
        stride, given = 1, torch.zeros(self._frames, dtype=torch.bool)
        # What an option adds is drawn last: so it changes nothing else.
        if self._condition == "first-frame":
            given[: self._draw_first_frames(generator)] = True
        elif every := keyframe_distance(self._condition):
            start, stride, given = self._draw_keyframes(len(clip), start, every, generator)
        return self._window(index, start, mirrored, caption, stride, given)

    def _is_shown(self, generator: torch.Generator) -> bool:
        return bool(torch.rand((), generator=generator) < self._condition_share)

    def _draw_first_frames(self, generator: torch.Generator) -> int:
        """How many frames at the start of a clip are given."""
        shown = self._is_shown(generator)
        one = bool(torch.rand((), generator=generator) < _ONE_FRAME)
        some = int(torch.randint(2, MOST_FIRST_FRAMES + 1, (), generator=generator))
        return shown * min(1 if one else some, self._frames - 1)

    def _draw_keyframes(
        self, length: int, start: int, every: int, generator: torch.Generator
    ) -> tuple[int, int, Tensor]:
        """Where a window begins in a clip of so many frames, how far its frames are apart, and which are given.

        Where its keyframes aren't given, it is keyframes itself, as far apart as sampling puts them; half of these
        begin with one that is given. Where they are, it may be those between keyframes of keyframes, which a second
        pass makes.
        """
        shown = self._is_shown(generator)
        even = bool(torch.rand((), generator=generator) < 0.5)
        room = length - every * (self._frames - 1)
        further = int(torch.randint(max(1, room), (), generator=generator))
        given = torch.zeros(self._frames, dtype=torch.bool)
        given[:: every if shown else self._frames] = shown or even
        return (further, every, given) if room > 0 and (even or not shown) else (start, 1, given)

    def _window(
        self, index: int, start: int, mirrored: bool, caption: str, stride: int = 1, given: Tensor | None = None
    ) -> _Item:
        place = (self._clips[index], start, self._frames, mirrored, stride)
        given = torch.zeros(self._frames, dtype=torch.bool) if given is None else given
        flow = self._flow.window(*place) if self._flow else None
        return self._latents.window(*place), self._text[caption], flow, given

    def middle(self, index: int) -> Batch:
        """The middle window of a clip, with its caption: what evaluation looks at."""
        clip = self._clips[index]
        return self._collate([self._window(index, (len(clip) - self._frames) // 2, False, clip.caption)])

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._clips)

    @staticmethod
    def _collate(items: Sequence[_Item]) -> Batch:
        latents, text, flow, given = zip(*items, strict=True)
        flows = [part for part in flow if part is not None]
        return Batch(torch.stack(latents), torch.stack(text), torch.stack(flows) if flows else None, torch.stack(given))
