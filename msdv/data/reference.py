"""How the training clips move: measured once, kept beside the frames, and what samples are compared with."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from msdv.data.clips import Clip, read_frames
from msdv.data.moving import make_reference
from msdv.files import write_file
from msdv.verdict import Reference

MOST_CLIPS = 16
"""Clips measured, spread evenly over all."""
_ENDS = 3
"""Frames of each end of a clip by which its colour drift is measured."""


def reference_of(
    clips: Sequence[Clip],
    *,
    frames: int,
    size: int,
    flip: bool,
    folder: Path,
    on_clip: Callable[[], None] = lambda: None,
) -> Reference:
    """Of training clips (at least one): `frames` frames from the middle of each at the size of training, and the colour
    drift from end to end. Kept in `folder`.

    Raises MsdvError for a frame that can't be read, OSError where the result can't be kept.
    """
    chosen = [clips[i * len(clips) // MOST_CLIPS] for i in range(MOST_CLIPS)] if len(clips) > MOST_CLIPS else clips
    file = folder / f"motion-{_key(chosen, frames, size, flip)}.json"
    try:
        return Reference.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        pass

    def windows() -> Iterator[np.ndarray]:
        for clip in chosen:
            start = (len(clip) - frames) // 2
            yield read_frames(clip.files[start : start + frames], size)
            on_clip()

    found = make_reference(windows(), flip=flip)
    drift = round(float(np.mean([_drift(clip, size) for clip in chosen])), 4)
    found = found.model_copy(
        update={
            "numbers": found.numbers.model_copy(update={"colour_drift": drift}),
            "drift_frames": round(float(np.mean([len(clip) for clip in chosen]))),
        }
    )
    with write_file(file) as temporary:
        temporary.write_text(found.model_dump_json(), encoding="utf-8")
    return found


def _drift(clip: Clip, size: int) -> float:
    """Mean colour of the first tenth of the frames against that of the last."""
    tenth = max(1, len(clip) // 10)
    every = -(-tenth // _ENDS)
    first, last = (
        read_frames(part, size).mean((0, 1, 2)) for part in (clip.files[:tenth:every], clip.files[-tenth::every])
    )
    return float(np.abs(last - first).mean())


def _key(clips: Sequence[Clip], frames: int, size: int, flip: bool) -> str:
    key = hashlib.sha256(f"3 {frames} {size} {flip}".encode())
    for clip in clips:
        for path in clip.files:
            stat = path.stat()
            key.update(f"{clip.name}/{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return key.hexdigest()[:20]
