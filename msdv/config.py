"""What each command can be told: one pydantic model a command, every field declared here and nowhere else.

The docstring below a field is the option's help text; its type gives the choices, its constraints the range that
help shows, `group` the panel that help puts it in. Precedence: command line > recipe > default, validated once.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

SchedulerName = Literal["ddim", "dpmpp-2m", "euler", "euler-a", "unipc", "lcm"]
GroupNormMode = Literal["frame", "joint"]
NoiseKind = Literal["independent", "flow"]

OUTPUT_SUFFIXES = (".gif", ".mp4", ".webm", ".webp", ".png")


def option(
    default: Any,
    group: str,
    *,
    flag: str | None = None,
    argument: bool = False,
    bare: str | None = None,
    metavar: str | None = None,
    json_schema: dict[str, Any] | None = None,
    **constraints: Any,
) -> Any:
    """A pydantic field with what the command line needs to know besides: its help group, a short flag, that it is
    given by position, what it means without a value, how help names its value, and what the type does not say of it."""
    extra: dict[str, Any] = {"group": group, **(json_schema or {})}
    if flag:
        extra["flag"] = flag
    if argument:
        extra["argument"] = True
    if bare:
        extra["bare"] = bare
    if metavar:
        extra["metavar"] = metavar
    return Field(default, json_schema_extra=extra, **constraints)


def _multiple_of_8(size: int) -> int:
    if size % 8:
        raise ValueError(f"must be a multiple of 8 (the image model works on 8x8 blocks): {size // 8 * 8} would do")
    return size


PictureSize = Annotated[int, Field(ge=16, le=4096, json_schema_extra={"multipleOf": 8}), AfterValidator(_multiple_of_8)]


def _frame_size(size: Any) -> int | str:
    text = str(size).strip().lower().replace("\u00d7", "x")
    match = re.fullmatch(r"(-?\d{1,5})(?:x(-?\d{1,5}))?", text, re.ASCII)
    if isinstance(size, bool) or not match:
        raise ValueError("must be one number, the side of a square, or WIDTHxHEIGHT: 512, or 768x512")
    width, height = int(match[1]), int(match[2] or match[1])
    for side in (width, height):
        if not 16 <= side <= 4096:
            raise ValueError(f"must be 16 to 4096 pixels: {side} is not")
        _multiple_of_8(side)
    return width if width == height else f"{width}x{height}"


FrameSize = Annotated[int | str, BeforeValidator(_frame_size)]
"""A square's side in pixels, or "WIDTHxHEIGHT"."""


def _motion(motion: str) -> str:
    if not re.fullmatch(r"auto|none|(left|right)(:\d{1,3}(\.\d+)?)?", motion, re.ASCII):
        raise ValueError("must be auto, none, left or right, the last two with a speed under 1000: left:1.5")
    return motion


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid UTF-8 text: write it in plain letters") from None
    return text


def _below_2_to_63(seed: int) -> int:
    if seed >= 2**63:
        raise ValueError("must be below 2 to the 63rd: random generators take no more")
    return seed


Seed = Annotated[int, AfterValidator(_below_2_to_63)]

Text = Annotated[str, AfterValidator(_encodable)]


Motion = Annotated[str, AfterValidator(_motion)]


class CommandConfig(BaseModel):
    """Shared by the four: immutable, no unknown keys, help texts from docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, defer_build=True
    )


class DeviceConfig(CommandConfig):
    """Where a model runs and in which precision."""

    base: str | None = option(None, "Model")
    """Image model: `builtin`, a hub id, a diffusers folder, or a .safetensors/.ckpt file. Not given: Stable Diffusion
    1.5 with a CUDA device, else `builtin`."""

    fp16: bool = option(False, "Device")
    """Compute in half precision (float16). On a CPU this means bfloat16."""

    bf16: bool = option(False, "Device")
    """Compute in half precision (bfloat16): needs an RTX 30 or newer; never overflows."""

    device: str | None = option(None, "Device")
    """`cuda`, `cuda:1`, `mps` or `cpu`. Not given: the best there is."""

    @model_validator(mode="after")
    def _one_half_precision(self) -> "DeviceConfig":
        if self.fp16 and self.bf16:
            raise ValueError("--fp16 and --bf16 exclude each other: choose one")
        return self


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


class TrainConfig(DeviceConfig):
    """Frames to temporal layers."""

    data: Path = option(Path("frames"), "Data")
    """Folder that `msdv prep` wrote."""

    out: Path | None = option(None, "Run", flag="-o")
    """Run folder. Not given: runs/<time>-<data>."""

    frames: int = option(25, "Data", ge=2, le=1024)
    """Frames in a training clip: windows of this length are cut at random from each video."""

    size: PictureSize | None = option(None, "Data")
    """Short side of the training pictures, in pixels. Not given: what the image model was made for."""

    flip: bool = option(False, "Data")
    """Show each clip mirrored half of the time. Captions that say left or right are changed accordingly."""

    holdout: float = option(0.05, "Data", ge=0, lt=1)
    """Share of the clips never trained on, all or none of those from one video: the loss on them is measured with the
    temporal layers on and off."""

    init: str = option("auto", "Model")
    """Temporal layers to start from: a run folder or a temporal .safetensors, `none` for untrained ones, `auto` for
    those that come with the image model, if any."""

    group_norm: GroupNormMode | None = option(None, "Model")
    """Statistics of group norms: of each `frame`, or `joint` over all frames of a clip, as in the 2022 model.
    Not given: what the weights in --init were made with, else `frame`."""

    steps: int = option(2000, "Training", ge=1)
    """Optimizer steps."""

    batch_size: int = option(1, "Training", ge=1)
    """Clips in a forward pass, per device."""

    grad_accum: int = option(1, "Training", ge=1)
    """Forward passes per optimizer step."""

    lr: float = option(1e-4, "Training", gt=0, lt=1)
    """Learning rate of the temporal attention, at its highest."""

    conv_lr: float = option(0.25, "Training", ge=0, le=10)
    """Learning rate of the temporal convolutions, as a multiple of --lr. At the full rate they first raise the loss."""

    schedule: Literal["cosine", "constant"] = option("cosine", "Training")
    """What the learning rate does after the warm-up: falls to zero, or stays."""

    warmup: int = option(50, "Training", ge=0)
    """Steps over which the learning rate rises to --lr."""

    weight_decay: float = option(0.01, "Training", ge=0, lt=1)
    """AdamW's weight decay, towards zero for the attention and towards the identity for the convolutions."""

    max_grad_norm: float = option(1.0, "Training", gt=0)
    """Gradients longer than this are scaled down to it."""

    ema: float = option(0.0, "Training", ge=0, lt=1)
    """Decay of a running average of the weights, which is what gets saved: 0.999 averages about the last 1,000 steps, 0
    takes the weights as they are."""

    caption_dropout: float = option(0.1, "Training", ge=0, le=1)
    """Share of clips shown without their caption, which guidance needs."""

    timestep_shift: float = option(1.0, "Training", gt=0, le=20)
    """Above 1, noisier clips are trained on more often: 2 suits small pictures."""

    noise: NoiseKind | None = option(None, "Training")
    """`independent` noise in each frame, or `flow`: noise carried along with what moves sideways in the clip, so that
    sampling can steer with --motion. Not given: what the weights in --init were trained with, else `independent`."""

    noise_share: float = option(0.5, "Training", ge=0, le=1)
    """With --noise flow: share of clips whose noise flows; the others get independent noise."""

    shared_noise: float | None = option(None, "Training", ge=0, le=10, metavar="ALPHA")
    """How much of the noise is the same in all frames of a clip: for 1 half of its variance, for 2 four fifths (PYoCo,
    Ge et al. 2023). Steadier videos, less motion; sampling then uses such noise too. Not with --noise flow. Not given:
    what the weights in --init were trained with, else 0, none."""

    offset_noise: float = option(0.0, "Training", ge=0, le=1, metavar="AMOUNT")
    """Add to the noise one random value a clip and channel, the same in all frames, of this standard deviation: lets
    whole clips be darker or brighter than the image model likes; 0.1 is usual, more washes out. 0 adds none."""

    zero_terminal_snr: bool | None = option(None, "Training")
    """Change the noise schedule so that nothing of the clip is left at its last step, where sampling starts (Lin et al.
    2023): true darks and brights, but the image model has to follow, which takes longer. Needs an image model that
    predicts v, such as Stable Diffusion 2.1. Sampling uses that schedule by itself. Not given: as the weights in
    --init, else as the image model."""

    min_snr: float | None = option(None, "Training", gt=0, le=1000, metavar="GAMMA")
    """Weigh noise levels by Min-SNR with this gamma (Hang et al. 2023; 5 is usual): clips with little noise, of which
    there is little to learn, count less. The loss of the steps is then the weighted one, the held-out loss is not. Not
    with --zero-terminal-snr, whose last step would count nothing. Not given: all noise levels count alike."""

    temporal_loss: float = option(0.0, "Training", ge=0, le=100, metavar="WEIGHT")
    """Add to the loss, so many times, the error in the differences between each frame and a random one of the same
    clip: errors in motion count, errors in looks that all frames share do not (after MotionDirector, Zhao et al. 2023).
    1 is usual, 0 adds none. The held-out loss is without it."""

    offload_optim: bool = option(False, "Device")
    """Keep the optimizer's master weights and moments in the computer's memory instead of the graphics card's, and
    compute its steps there. Without --no-offload-optim, --vram may choose it too."""

    checkpointing: Literal["none", "partial", "full"] | None = option(None, "Device")
    """`full` computes the network's parts again in the backward pass instead of keeping their insides: far less memory
    for a third more time. `partial` does so with as few parts as --vram makes necessary. Not given: what --vram makes
    necessary on a graphics card, `none` on a CPU."""

    checkpoint_units: int | None = option(None, "Device", ge=1)
    """With --checkpointing partial: how many parts of the network compute again, those first that free most memory for
    least work. Not given: as few as --vram makes necessary."""

    host_checkpoints: bool | None = option(None, "Device")
    """Between forward and backward pass, keep what --checkpointing computes from in the computer's memory: costs
    transfers. Not given: what --vram makes necessary."""

    chunk_frames: int | None = option(None, "Device", ge=0)
    """Frames that the image layers work on at a time: the fewer, the less memory and, below about 4, the slower; 0 is
    all at once. Not given: what --vram makes necessary."""

    stream_weights: bool | None = option(None, "Device")
    """Keep the image model's weights in the computer's memory and bring each part to the graphics card when it
    computes: for the smallest cards. Not given: what --vram makes necessary."""

    vram: float | None = option(None, "Device", gt=0, le=1024, metavar="GB")
    """Memory of the graphics card, in GiB, that may be used: of the settings above, those not given are chosen so that
    the training fits and is as fast as it can be. Not given: what the card has."""

    seed: Seed = option(0, "Run", ge=0)
    """Decides every random choice of the run."""

    checkpoint_every: int = option(500, "Run", ge=1)
    """Steps between checkpoints, from which --resume goes on."""

    checkpoint_minutes: float = option(30.0, "Run", ge=0)
    """Minutes after which a checkpoint is made in any case; 0 makes them by --checkpoint-every alone."""

    keep_checkpoints: int = option(2, "Run", ge=1)
    """Newest checkpoints to keep."""

    sample_every: int = option(500, "Run", ge=0)
    """Steps between sample gifs; 0 makes none."""

    sample_prompt: tuple[Text, ...] = option((), "Run")
    """Prompt of a sample gif; may be given several times. Not given: captions of the training clips."""

    resume: str | None = option(None, "Run", bare="newest", metavar="RUN")
    """Go on with a run from its newest checkpoint: a run folder, or nothing for the newest run."""

    evaluate: bool = option(False, "Run")
    """Train nothing: measure the loss of --init on all of --data, with the temporal layers on and off, and print it."""

    plan: bool = option(False, "Run")
    """Train nothing: print how much memory the training would take and what would be used. Needs neither data nor
    weights; --base may also be sd-1.5, sd-1.5-inpainting, sd-2.1, sd-2.1-base, sd-2-inpainting or 2022."""

    json_output: bool = option(False, "Run", flag="--json")
    """With --plan or --evaluate: print the result as one JSON object."""

    overwrite: bool = option(False, "Run")
    """Replace a run folder that exists."""


class SampleConfig(DeviceConfig):
    """A prompt to a moving picture."""

    prompt: Text = option(..., "", argument=True)
    """What to show."""

    out: Path = option(..., "Result", flag="-o")
    """Result: a .gif, .mp4, .webm, .webp or .png (animated) file, or a folder for one PNG a frame."""

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

    motion: Motion = option("auto", "Picture", metavar="MOTION")
    """How the noise moves, and with it the sky: `left` or `right`, with a speed in pixels a frame after a colon
    (left:1.5); `none` for independent noise; `auto` for what the model was trained with."""

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

    json_output: bool = option(False, "Result", flag="--json")
    """With --plan: print the result as one JSON object."""

    latents: Path | None = option(None, "Picture")
    """Initial noise from a safetensors file: key `latents`, shape (1, 4, frames, height/8, width/8)."""

    @model_validator(mode="before")
    @classmethod
    def _plan_without_prompt(cls, given: Any) -> Any:
        if isinstance(given, dict) and str(given.get("plan", "")).lower() in ("true", "1", "yes", "on"):
            return {"prompt": "", "out": Path("out.gif"), **given}
        return given


class ExportConfig(CommandConfig):
    """Temporal layers to a file or folder for elsewhere."""

    source: str = option(..., "", argument=True)
    """Run folder or temporal .safetensors."""

    out: Path = option(..., "Result", flag="-o")
    """Result: a .safetensors file, or a folder."""

    to: Literal["msdv", "pipeline"] | None = option(None, "Result")
    """`msdv`: the temporal layers alone, one half-precision .safetensors. `pipeline`: a folder with the image model and
    the temporal layers, complete. Not given: by what -o is."""

    base: str | None = option(None, "Model")
    """Image model that goes into a pipeline. Not given: the one the temporal layers were trained on."""

    overwrite: bool = option(False, "Result")
    """Replace a result that exists."""


CONFIGS: dict[str, type[CommandConfig]] = {
    "prep": PrepConfig,
    "train": TrainConfig,
    "sample": SampleConfig,
    "export": ExportConfig,
}
"""The commands, in the order in which one uses them. Sections of a recipe have the same names."""
