"""Initial noise: independent in each frame, or flowing: each frame's noise is the last one's, carried along.

Noise that moves like the picture makes the picture move (Chang et al., "How I Warped Your Noise", ICLR 2024; Burgert et
al. 2025, "Go-with-the-Flow", 2501.08331). Here the motion is sideways, one velocity a row: the case of clouds over
ground. It can be done exactly: each frame by itself is independent Gaussian noise with variance 1.

Velocities are in pixels per frame, positive to the right.
"""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from msdv.weights import Motion

CELL = 8
"""Pixels to a latent."""
AT_REST = 0.05
"""Pixels per frame: below, nothing moves."""


def independent_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Gaussian noise (b, c, f, h, w) on the CPU, so that a seed means the same on every device."""
    return torch.randn(*shape, generator=generator)


def partly_shared_noise(shape: Sequence[int], alpha: float, generator: torch.Generator) -> Tensor:
    """Noise (b, c, f, h, w) of variance 1 with a part that is the same in all frames of a clip: alpha squared times as
    much of the variance as the part that is independent in each (Ge et al. 2023, PYoCo, 2305.10474, the mixed noise
    model). alpha at least 0; 0 is independent noise."""
    independent = independent_noise(shape, generator)
    if not alpha:
        return independent
    b, c, _, h, w = shape
    shared = torch.randn(b, c, 1, h, w, generator=generator)
    return (independent + alpha * shared) / math.sqrt(1 + alpha * alpha)


def clip_offset(shape: Sequence[int], amount: float, generator: torch.Generator) -> Tensor:
    """What offset noise adds to noise of `shape` (b, c, f, h, w): a random value (b, c, 1, 1, 1) of standard deviation
    `amount` for each clip and channel. (N. Guttenberg, "Diffusion with offset noise", 2023, has one a picture; one a
    frame would teach flicker.)"""
    b, c = shape[:2]
    return amount * torch.randn(b, c, 1, 1, 1, generator=generator)


def flowing_noise(shape: Sequence[int], velocity: Tensor, generator: torch.Generator) -> Tensor:
    """Noise (b, c, f, h, w) of which row r moves velocity[b, r] pixels per frame; velocity (b, h).

    Under each latent row lies a strip of white noise, one value a pixel; a latent is the sum of the 8 pixels it covers
    over sqrt(8), and the strip moves by whole pixels. Latents of one frame share no pixel, hence are independent.
    """
    b, c, f, h, w = shape
    shift = (velocity.double()[..., None] * torch.arange(f)).round().long()  # (b, h, f), pixels to the right
    start = shift.amax(-1, keepdim=True) - shift  # where a frame's window begins in its strip
    length = int(start.max()) + CELL * w
    strip = torch.randn(b, c, h, length, generator=generator)
    # Sums over windows from running sums; float64, as they grow with the strip.
    total = torch.nn.functional.pad(strip.double().cumsum(-1), (1, 0))
    index = start[..., None] + CELL * torch.arange(w)  # (b, h, f, w)
    index = index.view(b, 1, h, f * w).expand(-1, c, -1, -1)
    cells = (total.gather(-1, index + CELL) - total.gather(-1, index)) / math.sqrt(CELL)
    return cells.float().view(b, c, h, f, w).permute(0, 1, 3, 2, 4).contiguous()


def mixed_noise(shape: Sequence[int], velocity: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
    """Flowing and independent noise mixed to variance 1; share (b,), 0 to 1, is the part of the variance that flows."""
    share = share.view(-1, 1, 1, 1, 1)
    flowing = flowing_noise(shape, velocity, generator)
    return share.sqrt() * flowing + (1 - share).sqrt() * independent_noise(shape, generator)


def estimate_row_velocity(frames: Tensor, lag: int = 4) -> Tensor:
    """How fast the picture moves sideways in each latent row of a clip: (rows,), pixels per frame.

    frames (f, h, w) grey, 0 to 255. What changes over the clip is compared along rows between frames `lag` apart. Rows
    in which little changes against what stands still, such as a skyline, and rows without contrast are at rest.
    """
    f, height, width = frames.shape
    lag = max(1, min(lag, f // 2))
    rows = height // CELL
    # Differences along the row: brightness that falls off slowly across the sky, such as the sun's glow, tells nothing.
    strips = frames.float()[:, : rows * CELL].diff(dim=-1).reshape(f, rows, CELL, width - 1)
    still = strips.mean(0, keepdim=True)
    moving = strips - still
    moves = moving.square().mean((0, 2, 3)) > torch.clamp(0.15 * still.square().mean((0, 2, 3)), min=0.05)
    moving = moving * torch.hann_window(width - 1, periodic=False)
    spectrum = torch.fft.rfft(moving, n=2 * width)
    cross = (spectrum[lag:] * spectrum[:-lag].conj()).sum((0, 2))  # (rows, frequencies)
    correlation = torch.fft.irfft(cross, n=2 * width)
    # Neighbouring rows move alike: three together are less often wrong than one.
    correlation = torch.nn.functional.avg_pool1d(correlation.T[None], 3, 1, 1)[0].T
    reach = width // 4
    correlation = torch.cat([correlation[:, -reach:], correlation[:, : reach + 1]], dim=-1)  # shifts -reach .. reach
    best = correlation[:, 1:-1].argmax(-1) + 1
    before, peak, after = (correlation.gather(1, best[:, None] + d).squeeze(1) for d in (-1, 0, 1))
    bend = (before - 2 * peak + after).clamp(max=-1e-12)
    velocity = (best - reach + 0.5 * (before - after) / bend) / lag
    return torch.where(moves & (peak > 0), velocity, torch.zeros(()))


def motion_of(velocities: Tensor, width: int, share: float) -> Motion | None:
    """What the clips of a data set have in common, from their row velocities (clips, rows); None if nothing moves.

    The profile is the lower quartile over the clips: a row in which often something stands still, such as a skyline,
    stays at rest.
    """
    speed = velocities.abs().amax(1)
    moving = speed > AT_REST
    if not moving.any():
        return None
    profile = (velocities[moving].abs() / speed[moving, None]).quantile(0.25, dim=0)
    profile = profile / profile.max().clamp(min=1e-6)
    return Motion(
        profile=tuple(round(p, 3) for p in profile.tolist()),
        speed=round(speed[moving].median().item() / width, 5),
        share=share,
    )


def velocity_for(
    motion: Motion, wish: str, prompt: str, height: int, width: int, generator: torch.Generator
) -> tuple[Tensor, str]:
    """Row velocities (1, height) in pixels per frame for a picture of height x width latents, and the wish resolved.

    wish: `auto` takes the direction from the prompt's words, or by chance where there is none, and the speed of the
    training clips; `left` or `right`, with `:speed` for the fastest row's speed in pixels per frame.
    """
    direction, _, speed_text = wish.partition(":")
    if direction == "auto":
        words = re.findall(r"\b(left|right)\b", prompt.lower())
        by_chance = "right" if torch.rand((), generator=generator) < 0.5 else "left"
        direction = words[-1] if words else by_chance
    speed = float(speed_text) if speed_text else motion.speed * width * CELL
    profile = torch.tensor(motion.profile)[None, None]
    profile = torch.nn.functional.interpolate(profile, size=height, mode="linear", align_corners=False)[0]
    sign = 1 if direction == "right" else -1
    return sign * speed * profile, f"{direction}:{speed:.3g}"
