"""What sample can be told."""

from pathlib import Path
from typing import Any

from pydantic import model_validator

from msdv.config.shared import (
    DeviceConfig,
    Dither,
    Motion,
    OutputPath,
    PictureSize,
    SchedulerName,
    Seed,
    Text,
    option,
)

MOST_STEADY = 32
"""Neighbours on each side that a frame can be averaged with."""


class SampleConfig(DeviceConfig):
    """A prompt to a moving picture."""

    prompt: Text = option(..., "", argument=True)
    """What to show."""

    out: OutputPath = option(..., "Result", flag="-o")
    """Result: a .gif, .mp4, .webm, .webp or .png (animated) file, or a folder for one PNG a frame; .safetensors for
    frames as numbers, 0 to 1, and their latents."""

    frames: int = option(25, "Result", ge=1, le=100_000)
    """Frames to make; more than the model was trained on is fine."""

    fps: float = option(12.0, "Result", gt=0, le=120)
    """Frames shown per second."""

    size: PictureSize | None = option(None, "Result")
    """Width and height, in pixels. Not given: what the temporal layers were trained at."""

    overwrite: bool = option(False, "Result")
    """Replace a result that exists."""

    model: str | None = option(None, "Model")
    """Temporal layers: a run folder, a temporal .safetensors, or a pipeline folder. Not given: the newest run under
    runs/ that has weights, else those that come with the image model."""

    negative: Text = option("", "Picture")
    """What not to show."""

    seed: Seed = option(0, "Picture", ge=0)
    """Another seed gives another video; the same seed the same file."""

    steps: int | None = option(None, "Picture", ge=1, le=1000)
    """Denoising steps. Not given: what suits the image model."""

    guidance: float | None = option(None, "Picture", ge=1, le=100)
    """How strongly to follow the prompt; 1 adds nothing, ignores --negative and is twice as fast. Not given: what suits
    the model."""

    scheduler: SchedulerName | None = option(None, "Picture")
    """Denoising method. Not given: what suits the image model."""

    prompt_at: tuple[Text, ...] = option((), "Picture", metavar="FRAME:TEXT")
    """What to show from another frame on: 60:sunset. The texts change gradually from one such frame, counted from 0, to
    the next; may be given several times."""

    seeds: str | None = option(None, "Picture", metavar="LIST")
    """Several seeds, 0-15 or 3,8,21, at most 64: one result in which their videos stand side by side, for choosing;
    --from then makes one of them."""

    steady: int | None = option(None, "Picture", ge=0, le=MOST_STEADY, metavar="FRAMES")
    """Average each frame with so many before and after it, carried along the motion where it can be followed: less
    flicker, a little less detail. Frames that were given by --image, and those in a .safetensors result, stay as they
    are; 0 averages none. Not given: what suits the image model; none with --latents."""

    lora: tuple[Text, ...] = option((), "Model", metavar="FILE[:WEIGHT]")
    """LoRA for the image model, as diffusers or kohya's tools write them, with how much of it to add (default 1); may
    be given several times."""

    image: tuple[Text, ...] = option((), "Start", metavar="[FRAME:]FILE")
    """A picture that the video starts from, or has at a frame counted from 0: 60:b.png, or -1:b.png for the last. It is
    scaled and cropped to size; may be given several times."""

    mask: Path | None = option(None, "Start")
    """With --image: a picture of the same shape, white where the model is to paint, black where --image stays in
    all frames. Needs an inpainting model."""

    continue_from: Path | None = option(None, "Start", flag="--continue", metavar="VIDEO")
    """Go on where a video ends, or where a folder of pictures does: its frames and --frames new ones, at its --fps if
    no other is given."""

    video: Path | None = option(None, "Start")
    """Make the video out of another one, which it follows: its first --frames frames, or as many as it has (1,000 at
    most), taken as many a second as the model was trained on and shown at --fps."""

    strength: float = option(0.6, "Start", gt=0, le=1)
    """With --video: how far to go from it; 1 leaves nothing of it."""

    window: int | None = option(None, "Length", ge=2, le=1024)
    """Frames denoised together. Longer videos are made of windows that overlap, with memory for one of them; a video
    that is no longer is made in one piece. Not given: all frames are denoised together."""

    overlap: int | None = option(None, "Length", ge=1)
    """Frames that a window shares with the next, or with --loop its end with its beginning. Not given: a third of a
    window; without --window 8."""

    loop: bool = option(False, "Length")
    """Make the last frame lead into the first."""

    keyframe_passes: int | None = option(None, "Length", ge=0, le=3)
    """With layers trained by --condition keyframes:4: make every 4th frame first (1), or every 16th, then every 4th
    (2), and then those between: 4 or 16 times the length at the same memory. Not given: as many as --frames needs, one
    at least. 0 makes keyframes alone, which play 4 times as fast."""

    cache: int = option(1, "Device", ge=1, le=10)
    """Compute the deep layers in every N-th step only, and in between only what is near the picture: less exact, and
    faster. With the built-in model 2 takes three quarters of the time and changes pixels by 2 of 255 on average, 3 by
    4, 5 by 12."""

    preview: bool = option(False, "Result")
    """While it denoises, show in a picture beside the result (out.gif.preview.png) how far it is: 8 frames, rough,
    renewed every few steps and gone when the result is there."""

    dither: Dither = option("diffusion", "Result")
    """How a gif shows colours between its 256: `diffusion` is nearest to the picture, `ordered` leaves alone what
    stands still, `none` makes the smallest files, with bands."""

    prompts: Path | None = option(None, "Run", metavar="FILE")
    """Make a video of each line of a text file (not of those that begin with #), named out-001.gif and so on; leave
    PROMPT out. What is finished already is not made again. Several processes (accelerate launch) share them out."""

    from_file: Path | None = option(None, "Run", flag="--from", metavar="FILE")
    """Repeat what made a result, with the settings in it; what is given besides goes first."""

    motion: Motion = option("auto", "Picture", metavar="MOTION")
    """How the noise moves, and with it what moves in the training clips: `left`, `right`, `up`, `down`, or an angle
    (`30deg`: 0 is to the right, 90 up), with the fastest place's speed in pixels a frame after a colon (left:1.5); the
    whole picture by `zoom`, with percent a frame (zoom:0.5; negative zooms out); several of these joined by +; as in
    another video (a file); `none` for independent noise; `auto` for what the model was trained with."""

    still: Path | None = option(None, "Picture", metavar="MASK")
    """A picture, white where the noise is to stand still whatever --motion says; it is scaled and cropped to size."""

    chunk_frames: int | None = option(None, "Device", ge=0)
    """Frames that the image layers work on at a time: the fewer, the less memory and, below about 4, the slower; 0 is
    all at once. Not given: what --vram makes necessary."""

    stream_weights: bool | None = option(None, "Device")
    """Keep the image model's weights in the computer's memory and bring each part to the graphics card when it
    computes: for the smallest cards. Not given: what --vram makes necessary."""

    vram: float | None = option(None, "Device", gt=0, le=1024, metavar="GB")
    """Memory of the graphics card, in GiB, that may be used: of the settings above, those not given are chosen so that
    the video fits. Not given: what the card has."""

    plan: bool = option(False, "Result")
    """Make nothing: print how much memory it would take and what would be used. Needs neither a prompt nor weights;
    --base may also be sd-1.5, sd-1.5-inpainting, sd-2.1, sd-2.1-base, sd-2-inpainting or 2022."""

    report: bool = option(False, "Result")
    """Measure how the video moves, and print it beside the same numbers of the training clips and in words: static,
    flickers, frames are independent, moves like the data."""

    json_output: bool = option(False, "Result", flag="--json")
    """With --plan or --report: print the result as one JSON object."""

    latents: Path | None = option(None, "Picture")
    """Initial noise from a safetensors file: key `latents`, shape (1, 4, frames, height/8, width/8)."""

    @model_validator(mode="before")
    @classmethod
    def _without_prompt(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if str(given.get("plan", "")).lower() in ("true", "1", "yes", "on"):
            return {"prompt": "", "out": Path("out.gif"), **given}
        if given.get("prompts") is not None or given.get("from_file") is not None:
            return {"prompt": "", **given}
        return given
