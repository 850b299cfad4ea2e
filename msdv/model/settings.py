"""The settings that spend a card's memory, and time with it: their names, and the order in which they are taken."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from msdv.model.savings import Savings


@dataclass(frozen=True)
class Settings:
    """What decides how memory is spent and time with it; the names are those of the options."""

    checkpointing: Literal["none", "partial", "full"] = "none"
    checkpoint_units: int | None = None
    """With `partial`: how many units of the network."""
    chunk_frames: int = 0
    offload_optim: bool = False
    host_checkpoints: bool = False
    stream_weights: bool = False

    def words(self, sampling: bool = False) -> str:
        """As options on the command line."""
        words = [] if sampling else [f"--checkpointing {self.checkpointing}"]
        words += [f"--checkpoint-units {self.checkpoint_units}"] if self.checkpoint_units else []
        words += [f"--chunk-frames {self.chunk_frames}"] if self.chunk_frames else []
        flags = ("offload_optim", "host_checkpoints", "stream_weights")
        words += [f"--{flag.replace('_', '-')}" for flag in flags if getattr(self, flag)]
        return " ".join(words)


_FULL = {"checkpointing": "full"}
_OFFLOAD = _FULL | {"offload_optim": True}
_HOST = _OFFLOAD | {"host_checkpoints": True}

TRAINING_NOTCHES: tuple[dict[str, Any], ...] = (
    {},
    _FULL,
    _OFFLOAD,
    _HOST,
    _HOST | {"chunks": 4},
    _HOST | {"chunks": 8, "stream_weights": True},
)
"""From the fastest to the smallest: each takes less memory than the one before, and as a rule more time. `chunks`: in
how many the frames are worked off, but no fewer than `at_least` at a time. Between none and all, as few units are
checkpointed as fit."""
SAMPLING_NOTCHES: tuple[dict[str, Any], ...] = (
    {},
    {"chunks": 12, "at_least": 10},
    {"chunks": 12},
    {"chunks": 12, "stream_weights": True},
)


def is_sound(settings: Settings) -> bool:
    """Whether the settings go together."""
    return settings.checkpointing != "none" or not settings.host_checkpoints


def as_dict(settings: Settings) -> dict[str, Any]:
    """For JSON and configurations."""
    return {key: value for key, value in asdict(settings).items() if value is not None}


def as_savings(settings: Settings, units: Sequence[str] = ()) -> Savings:
    """Settings as the model takes them; `units`: which are checkpointed, with partial checkpointing."""
    checkpoint = tuple(units) if settings.checkpointing == "partial" else settings.checkpointing
    return Savings(
        checkpoint=checkpoint,
        host_checkpoints=settings.host_checkpoints,
        chunk_frames=settings.chunk_frames,
        stream_weights=settings.stream_weights,
    )


def step_down(settings: Settings) -> Settings | None:
    """The next settings that take less memory, for a training that ran out of it all the same; None if there are none.
    Where the optimizer is stays as it is."""
    if settings.checkpointing != "full":
        return replace(settings, checkpointing="full", checkpoint_units=None)
    if not settings.host_checkpoints:
        return replace(settings, host_checkpoints=True)
    if not settings.chunk_frames or settings.chunk_frames > 8:
        return replace(settings, chunk_frames=8)
    if settings.chunk_frames > 4:
        return replace(settings, chunk_frames=4)
    return None if settings.stream_weights else replace(settings, stream_weights=True)
