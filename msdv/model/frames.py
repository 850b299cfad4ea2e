"""How many frames a clip has: known to all temporal layers of a model, and to what works frames off in parts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from msdv.model.chunks import Ranges


@dataclass
class FrameContext:
    """Shared by the layers of one model and set before each forward pass (see inflate.py)."""

    frames: int = 1
    """Frames of each clip in the batch."""
    enabled: bool = True
    """Off: temporal layers let everything through unchanged, which is the image model."""
    chunk: int = 0
    """Frames that what sees each frame for itself works off at a time; 0: all at once. What sees each position for
    itself does as many in as many parts."""

    def ranges(self, n: int) -> Ranges:
        """The parts in which to work off a folded batch of `n` frames."""
        if not 0 < self.chunk < n:
            return [slice(0, n)]
        starts = (start for clip in range(0, n, self.frames) for start in range(clip, clip + self.frames, self.chunk))
        return [slice(s, min(s + self.chunk, s - s % self.frames + self.frames)) for s in starts]

    @property
    def parts(self) -> int:
        """In how many parts a clip is worked off."""
        return -(-self.frames // self.chunk) if self.chunk else 1

    def of_range(self, text: Tensor, n: int) -> Callable[[slice], Tensor]:
        """Of text given once a clip or once a frame, for `n` frames, what belongs to each of the ranges."""
        frames = self.frames  # of now, whenever it is asked

        def of(part: slice) -> Tensor:
            if part.stop - part.start == n:
                return text
            if text.shape[0] == n:
                return text[part]
            return text[part.start // frames : part.start // frames + 1]

        return of

    @contextmanager
    def as_of(self, frames: int, enabled: bool) -> Iterator[None]:
        """Inside the block, what was true when a forward pass was made that is now computed again."""
        now = self.frames, self.enabled
        self.frames, self.enabled = frames, enabled
        try:
            yield
        finally:
            self.frames, self.enabled = now
