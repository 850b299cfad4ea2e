"""What a model says of some frames of a video, with guidance: the innermost part of denoising."""

from typing import Protocol

from torch import Tensor

from msdv.model.diffusion import predict
from msdv.model.given import Given
from msdv.model.inflate import VideoUNet
from msdv.model.reuse import Reuse


class Text(Protocol):
    """What a video is to show."""

    def at(self, frames: Tensor) -> Tensor:
        """Of the video's `frames` (n,): (1, tokens, d), the same for all of them, or (1, n, tokens, d)."""


class OneText:
    """The same text throughout."""

    def __init__(self, embedding: Tensor) -> None:
        """embedding (1, tokens, d)."""
        self._embedding = embedding

    def at(self, frames: Tensor) -> Tensor:
        """(1, tokens, d)."""
        return self._embedding


class Guided:
    """A model's prediction by classifier-free guidance (Ho & Salimans 2022, 2207.12598). The two predictions are made
    in turn, which takes half the memory of making them together."""

    def __init__(
        self,
        model: VideoUNet,
        text: Text,
        negative: Text,
        *,
        guidance: float,
        condition: Tensor | None = None,
        given: Given | None = None,
        cache: int = 1,
    ) -> None:
        """condition (1, 5, f, h, w): mask and image latents of all frames, for inpainting models. Others take
        `given`. cache: every how many-th call computes the deep layers; above 1, all calls must be of the same frames.

        Raises UsageError for a model that has none, with cache above 1.
        """
        self._model, self._text, self._negative = model, text, negative
        self._guidance, self._condition, self._given = guidance, condition, given
        self._reuse = Reuse(model, cache)

    def __call__(self, latents: Tensor, timestep: Tensor, frames: Tensor) -> Tensor:
        """For model input (1, 4, n, h, w) of the video's `frames` (n,) at timestep (): a prediction like it."""
        condition = None if self._condition is None else self._condition[:, :, frames]
        if self._given is not None:
            latents, timestep = self._given.show(latents, timestep, frames)
        with self._reuse.call("text"):
            prediction = predict(self._model, latents, timestep, self._text.at(frames), condition)
        if self._guidance == 1:
            return prediction
        with self._reuse.call("negative"):
            unguided = predict(self._model, latents, timestep, self._negative.at(frames), condition)
        return unguided + self._guidance * (prediction - unguided)
