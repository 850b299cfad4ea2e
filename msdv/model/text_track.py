"""Several texts in one video: each is shown at a frame of its own, and between two the embeddings go over gradually."""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from msdv.config import SampleConfig
from msdv.errors import UsageError
from msdv.model.guidance import OneText, Text


class TextTrack:
    """A text for each frame: the embeddings of keyed frames, and in between their linear interpolation, made when it is
    asked for. Before the first key and after the last one nothing changes."""

    def __init__(self, keys: Sequence[tuple[int, Tensor]], *, loop: int | None = None) -> None:
        """keys: frames, rising, and embeddings (1, tokens, d). `loop`: as many frames has a video of which the last
        text leads back into the first."""
        self._frames = [frame for frame, _ in keys]
        self._embeddings = torch.cat([embedding for _, embedding in keys])
        self._loop = loop

    def at(self, frames: Tensor) -> Tensor:
        """(1, n, tokens, d) for frames (n,), or (1, tokens, d) where one text is shown in all of them."""
        places = [self._place(frame) for frame in frames.tolist()]
        if len(set(places)) == 1 and places[0][2] == 0:
            return self._embeddings[places[0][0]][None]
        device = self._embeddings.device
        before, after, shares = (torch.tensor(values, device=device) for values in zip(*places, strict=True))
        mixed = torch.lerp(
            self._embeddings[before].float(), self._embeddings[after].float(), shares.float()[:, None, None]
        )
        return mixed.to(self._embeddings.dtype)[None]

    def _place(self, frame: int) -> tuple[int, int, float]:
        """Between which two texts a frame is, and the share of the second."""
        last = len(self._frames) - 1
        before = max(0, bisect_right(self._frames, frame) - 1)
        after, end = before + 1, None
        if before < last:
            end = self._frames[after]
        elif self._loop is not None:
            after, end = 0, self._loop + self._frames[0]
        start = self._frames[before]
        if end is None or frame <= start:
            return before, before, 0.0
        return before, after, (frame - start) / (end - start)


def text_keys(config: SampleConfig) -> list[tuple[int, str]]:
    """The texts of a video and the frames at which they are shown, in order; the first is PROMPT's, at 0.

    Raises UsageError for a --prompt-at that can't be meant.
    """
    keys = {0: config.prompt}
    for word in config.prompt_at:
        frame, separator, text = word.partition(":")
        if not separator or not re.fullmatch(r"[0-9]+", frame.strip()):
            raise UsageError(f"--prompt-at {word}: give a frame's number, a colon and a text: 60:sunset")
        number, text = int(frame), text.strip()
        if not text:
            raise UsageError(f"--prompt-at {word}: there is no text after the colon: give one, as in 60:sunset")
        if not number:
            raise UsageError(f"--prompt-at {word}: at frame 0 it is PROMPT that is shown: give a later frame")
        if number >= config.frames:
            raise UsageError(
                f"--prompt-at {word}: the last of {config.frames} frames is {config.frames - 1}: "
                "give one of those, or raise --frames"
            )
        if number in keys:
            raise UsageError(f"--prompt-at {word}: frame {number} has a text already: leave one out")
        keys[number] = text
    return sorted(keys.items())


def text_of(config: SampleConfig, embedding: Callable[[str], Tensor]) -> Text:
    """What a video is to show; `embedding` (1, tokens, d) of a text."""
    keys = text_keys(config)
    if len(keys) == 1:
        return OneText(embedding(config.prompt))
    return TextTrack([(frame, embedding(text)) for frame, text in keys], loop=config.frames if config.loop else None)
