"""From what --motion says, and what is known of the training clips, to the flow that carries the noise along."""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from msdv.config.motion import AT_REST, Auto, Drift, Zoom, motion_terms
from msdv.model.particles import CELL
from msdv.verdict import STATIC_FLOW, MotionNumbers, Reference, verdict
from msdv.weights import Motion

_STANDS, _MOVES = 0.1, 0.2
"""Of the speed of the fastest place: what is slower stands still, what is faster moves as measured."""
GAINS = (0.67, 2.0)
"""Least and greatest gain: beyond these the noise alone would not mend it."""
GRID = 2
"""Cells of a flow to a latent, each way."""


def motion_of(means: Tensor, width: int, share: float, mirrored: bool = False) -> Motion | None:
    """What the clips of a data set have in common, from the mean flow of each (clips, 2, rows, columns), pixels a frame
    of pictures `width` wide; None if nothing moves. `mirrored`: they are trained on mirrored as often as not.

    How fast a place is against the fastest of its clip is the lower quartile over the clips: where often something
    stands still, such as a skyline, nothing moves. On average over what moves it is as fast as the clips.
    """
    speed = means.norm(dim=1).amax((1, 2))
    moving = speed > AT_REST
    if not moving.any():
        return None
    means, speed = means[moving], speed[moving]
    left = means[:, 0].mean((1, 2)) < 0
    means = torch.where(left[:, None, None, None], mirror(means), means)
    relative = means / speed[:, None, None, None]
    ways = relative.mean(0)
    often = relative.norm(dim=1).quantile(0.25, dim=0)
    often = often / often.max().clamp(min=1e-6)
    moved = ((often - _STANDS) / (_MOVES - _STANDS)).clamp(0, 1)
    size = often * moved
    size = size * ((means.norm(dim=1).mean(0) * moved).sum() / size.sum().clamp(min=1e-6))
    field = ways / ways.norm(dim=0).clamp(min=1e-6) * size / width
    rows = field.permute(1, 2, 0).double().tolist()
    return Motion(
        field=tuple(tuple((round(x, 6), round(y, 6)) for x, y in row) for row in rows),
        left=0.5 if mirrored else round(left.float().mean().item(), 3),
        share=share,
    )


def moves(flow: Tensor) -> Tensor:
    """Whether anything moves, for each clip of flow (b, n, 2, h, w): (b,) bool. A tenth of the picture has to, on
    average over the frames."""
    speed = flow.float().mean(1).norm(dim=1).flatten(1)
    return speed.quantile(0.9, dim=1) > AT_REST


def mirror(flow: Tensor) -> Tensor:
    """Flow (..., 2, h, w) of the mirrored picture."""
    return flow.flip(-1) * torch.tensor([-1.0, 1.0]).view(2, 1, 1)


@dataclass(frozen=True)
class Slippage:
    """How the picture keeps up with the noise that carries it."""

    share: float
    """How many times as fast as its noise the picture goes, more than 0."""

    @property
    def gain(self) -> float:
        """How many times as fast as the picture the noise has to go."""
        least, most = GAINS
        return round(min(max(1 / self.share, least), most), 4)

    def __str__(self) -> str:
        limit = "" if abs(self.gain * self.share - 1) < 0.01 else ", and no more: train longer" * (self.gain > 1)
        return (
            f"the picture goes {self.share:.3g} times as fast as its noise: "
            f"sampling makes the noise {self.gain:.3g} times as fast{limit}"
        )


def slippage_of(motion: Motion, samples: MotionNumbers, reference: Reference | None) -> Slippage | None:
    """Of samples made with `auto` and this motion, which asks for what the training clips do. None where they don't
    tell: where they are at rest, flicker or their frames are independent, and where the clips are at rest."""
    usual = None if reference is None else reference.numbers.pace_moving
    if usual is None or usual < STATIC_FLOW or not samples.pace_moving:
        return None
    if not verdict(samples, reference).startswith(("moves like", "moves less", "moves more")):
        return None
    return Slippage(samples.pace_moving / usual / motion.gain)


def flow_for(
    motion: Motion, wish: str, prompt: str, height: int, width: int, generator: torch.Generator
) -> tuple[Tensor, str]:
    """Flow (1, 1, 2, 2 height, 2 width) in pixels a frame for a picture of height x width latents, and the wish with
    what it left open filled in.

    wish: what --motion says, but a file. `auto` is the mean flow of the training clips, to the left or right by the
    prompt's words, or by chance where there is none, as often as in the clips. A direction holds where the clips move,
    and as much as they do there; zoom holds everywhere. The flow is the wish times the motion's gain.
    """
    usual = torch.tensor(motion.field).permute(2, 0, 1) * (width * CELL)
    size = (GRID * height, GRID * width)
    usual = torch.nn.functional.interpolate(usual[None], size=size, mode="bilinear", align_corners=False)[0]
    fastest = usual.norm(dim=0).max()
    flow, used = torch.zeros(2, *size), []
    terms = motion_terms(wish) or []
    for term, text in zip(terms, wish.split("+") if terms else [], strict=True):
        if isinstance(term, Zoom):
            flow += _growing(*size) * (term.percent / 100)
            used.append(f"zoom:{term.percent:g}")
        elif isinstance(term, Drift):
            speed = fastest.item() if term.speed is None else term.speed
            angle = math.radians(term.angle)
            way = torch.tensor([math.cos(angle), -math.sin(angle)]).view(2, 1, 1)
            flow += way * speed * usual.norm(dim=0) / fastest.clamp(min=1e-6)
            used.append(f"{text.partition(':')[0]}:{speed:.3g}")
        else:
            assert isinstance(term, Auto)
            left = _to_the_left(prompt, motion.left, generator)
            flow += mirror(usual) if left else usual
            sideways = usual[0].sum() > 0.5 * usual.norm(dim=0).sum()
            used.append(f"{('right', 'left')[left]}:{fastest:.3g}" if sideways else "auto")
    return (flow * motion.gain)[None, None], "+".join(used)


def _to_the_left(prompt: str, share: float, generator: torch.Generator) -> bool:
    words = re.findall(r"\b(left|right)\b", prompt.lower())
    by_chance = bool(torch.rand((), generator=generator) >= 1 - share)
    return words[-1] == "left" if words else by_chance


def _growing(rows: int, columns: int) -> Tensor:
    """Pixels to the right and down of the middle, of a flow's places: (2, rows, columns)."""
    y, x = (((torch.arange(n) + 0.5) - n / 2) * (CELL / GRID) for n in (rows, columns))
    return torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)])
