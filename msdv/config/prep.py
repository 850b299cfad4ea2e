"""What prep can be told."""

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from msdv.config.shared import CommandConfig, FrameSize, Text, option


class PrepConfig(CommandConfig):
    """Videos to frames."""

    videos: Path = option(..., "", argument=True)
    """Folder of videos (searched below it too), or one video."""

    frames: Path = option(..., "", argument=True)
    """Folder for the frames: a folder a video in it, with 000001.jpg and so on."""

    fps: float = option(5.0, "Frames", gt=0, le=120)
    """Frames kept per second of video."""

    size: FrameSize = option(
        512, "Frames", metavar="PX|WxH", json_schema={"minimum": 16, "maximum": 4096, "multipleOf": 8}
    )
    """Size of the pictures in pixels: one number for a square, or WIDTHxHEIGHT."""

    fit: Literal["crop", "pad"] = option("crop", "Frames")
    """How a video of another shape gets that size: `crop` cuts out the centre, `pad` keeps all of it and fills up with
    black."""

    crop_bars: bool = option(True, "Frames")
    """Find black bars at the sides of a video, and cut them off. With --select script: only if asked for."""

    trim: Literal["fixed", "auto"] = option("fixed", "Frames")
    """What to leave out at both ends: `fixed`, as many seconds as the next two options say; `auto`, what stands still
    there (and those seconds too, if given)."""

    trim_start: float = option(2.0, "Frames", ge=0)
    """Seconds left out at the start of each video; none with --trim auto, if not given."""

    trim_end: float = option(2.0, "Frames", ge=0)
    """Seconds left out at the end of each video; none with --trim auto, if not given."""

    scenes: bool = option(False, "Frames")
    """Split videos where one scene ends and the next begins: folders clouds.mp4, clouds.mp4#2, and so on."""

    select: Literal["grid", "script"] = option("grid", "Frames")
    """Which frames: `grid` takes what is on display at start + j/fps; `script` exactly those that the 2022 bash script
    took, in its colours and shape, so that an old data set can be made again (from videos of 4 frames per second or
    more)."""

    caption: Text | None = option(None, "Captions")
    """One caption for all clips. Not given: the text file beside a video (clouds.txt for clouds.mp4), else what
    captions.csv or captions.jsonl in the folder says, else its name."""

    min_motion: float | None = option(None, "Selection", ge=0)
    """Leave out clips in which less moves: percent of the picture's short side, from frame to frame. This and the next
    three hold for all clips in FRAMES."""

    max_flicker: float | None = option(None, "Selection", ge=0)
    """Leave out clips whose brightness jumps more from frame to frame: levels of 255."""

    min_sharpness: float | None = option(None, "Selection", ge=0, le=100)
    """Leave out clips that are less sharp: 80 is crisp, below 20 blurred."""

    drop_duplicates: bool = option(False, "Selection")
    """Leave out clips that are nearly the same as another."""

    sort: Literal["motion", "flicker", "sharpness", "name"] = option("motion", "Selection")
    """Order of the clips on the contact sheet."""

    check: Path | None = option(None, "Run", metavar="FRAMES")
    """Look at a folder of frames instead of making one, and say what training will do with each clip. VIDEOS and
    FRAMES are left out then: msdv prep --check frames/."""

    workers: int | None = option(None, "Run", ge=1, le=256)
    """Videos worked on at a time, a process each. Not given: one per processor core."""

    overwrite: bool = option(False, "Run")
    """Make clips again that were finished before."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_that_depend(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = dict(given)
        if given.get("trim") == "auto":
            given.setdefault("trim_start", 0.0)
            given.setdefault("trim_end", 0.0)
        if given.get("select") == "script":
            given.setdefault("crop_bars", False)
        if given.get("check") is not None:
            if "videos" in given or "frames" in given:
                raise ValueError(
                    "--check takes one folder of frames, and neither VIDEOS nor FRAMES: msdv prep --check frames/"
                )
            given["videos"] = given["frames"] = given["check"]
        return given

    @model_validator(mode="after")
    def _script_alone(self) -> "PrepConfig":
        if self.select == "script" and (self.scenes or self.trim == "auto"):
            name = "--scenes" if self.scenes else "--trim auto"
            raise ValueError(f"--select script takes the frames that the 2022 script took: leave out {name}")
        return self
