"""What a training finds out about its clips before it begins: computed where no earlier run has, and kept beside the
frames (data/cache.py, data/reference.py)."""

from collections.abc import Callable, Sequence

import torch

from msdv.config import TrainConfig
from msdv.console import progress, say
from msdv.data.cache import FOLDER, FlowCache, LatentCache, TextCache, mirror_caption
from msdv.data.clips import Clip
from msdv.data.reference import MOST_CLIPS, reference_of
from msdv.errors import first_line
from msdv.model.base import Base
from msdv.model.steering import motion_of
from msdv.model.temporal import module_hash
from msdv.verdict import Reference
from msdv.weights import Motion

ENCODER = ("encoder.", "quant_conv.")
"""Parts of an autoencoder that latents depend on."""
_KEPT = "kept for later runs"


def cached_latents(config: TrainConfig, base: Base, size: int, clips: Sequence[Clip]) -> LatentCache:
    """With those of `clips`, pictures of `size` pixels a side, in it."""
    cache = LatentCache(config.data / FOLDER, size, module_hash(base.vae, ENCODER), config.flip)
    _fill(cache, "encoding clips", clips, lambda clip: cache.encode(clip, base.encode_frames))
    return cache


def cached_text(config: TrainConfig, base: Base, clips: Sequence[Clip]) -> TextCache:
    """With the captions of `clips` in it, and where they are mirrored those of mirrored clips."""
    captions = {clip.caption for clip in clips}
    if config.flip:
        captions |= {mirror_caption(caption) for caption in captions}
    cache = TextCache(config.data / FOLDER, module_hash(base.text_encoder))
    cache.encode(sorted(captions), base.encode_prompts)
    return cache


def cached_flow(config: TrainConfig, size: int, clips: Sequence[Clip]) -> FlowCache:
    """With that of `clips` in it: what --noise flow carries noise along with."""
    cache = FlowCache(config.data / FOLDER, size)
    _fill(cache, "optical flow", clips, cache.measure)
    return cache


def _fill(cache: LatentCache | FlowCache, what: str, clips: Sequence[Clip], compute: Callable[[Clip], None]) -> None:
    missing = [clip for clip in clips if not cache.is_cached(clip)]
    with progress("clip") as bar:
        task = bar.add_task(what, total=len(missing), note=_KEPT, visible=bool(missing))
        for clip in missing:
            compute(clip)
            bar.advance(task)


def mean_motion(config: TrainConfig, cache: FlowCache, clips: Sequence[Clip], share: float) -> Motion | None:
    """What `clips` have in common, for noise of whose variance `share` flows; None, and a line, if nothing moves."""
    motion = motion_of(torch.stack([cache.mean(clip) for clip in clips]), cache.size, share, config.flip)
    if motion is None:
        say("--noise flow: nothing moves in the clips, so no noise will flow: msdv prep --fps 1 takes longer steps")
    return motion


def clips_reference(config: TrainConfig, size: int, clips: Sequence[Clip]) -> Reference | None:
    """What samples are compared with; None, and a line, where it can't be measured."""
    try:
        with progress("clip") as bar:
            task = bar.add_task("motion of the clips", total=min(len(clips), MOST_CLIPS), note=_KEPT)
            return reference_of(
                clips,
                frames=config.frames,
                size=size,
                flip=config.flip,
                folder=config.data / FOLDER,
                on_clip=lambda: bar.advance(task),
            )
    except Exception as error:  # no report is worth a training
        say(f"the clips' motion can't be measured, and samples are compared with nothing: {first_line(error)}")
        return None
