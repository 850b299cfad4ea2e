"""What train can be told."""

from pathlib import Path
from typing import Literal

from msdv.config.shared import Arch, Condition, DeviceConfig, GroupNormMode, NoiseKind, PictureSize, Seed, Text, option


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
    """Temporal layers to start from: a run folder or a temporal .safetensors, motion modules as an AnimateDiff file
    (v1, v2 or v3) or a diffusers motion adapter's folder, or a folder of the 2022 model; `none` for untrained ones,
    `auto` for those that come with the image model, if any."""

    arch: Arch | None = option(None, "Model")
    """Temporal layers: `pseudo3d`, convolutions and attention, for clips of any length; or `motion-module`, the
    attention of AnimateDiff, 32 frames at once at most, which ComfyUI, A1111 and diffusers load too. Not given: as the
    weights in --init, else `pseudo3d`."""

    mid_block: bool | None = option(None, "Model")
    """With --arch motion-module: one module in the middle of the network too, as AnimateDiff v2 has it; without, the
    result is of the layout of v3. Not given: as the weights in --init, else without."""

    group_norm: GroupNormMode | None = option(None, "Model")
    """Statistics of group norms: of each `frame`, or `joint` over all frames of a clip, as in the 2022 model. With
    --arch motion-module of the modules' own: `joint` as ComfyUI and diffusers compute them, or `frame` as A1111 does.
    Not given: what the weights in --init were made with, else `frame` for pseudo3d and `joint` for motion-module."""

    lora_rank: int = option(0, "Model", ge=0, le=256, metavar="RANK")
    """Train a LoRA of this rank on the image model's attention beside the temporal layers, 8 is usual: the look of the
    clips goes there. It is written to lora.safetensors in the run folder, and sampling leaves it out unless --lora
    takes it. Samples of the training are with it. 0 trains none."""

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
    """`independent` noise in each frame, or `flow`: noise carried along with what moves in the clip, so that sampling
    can steer with --motion. Not given: what the weights in --init were trained with, else `independent`."""

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

    betas: Literal["base", "linear"] | None = option(None, "Training")
    """Noise schedule: the image model's own (`base`), or with --arch motion-module the `linear` one that AnimateDiff's
    modules were trained on, and with which A1111 samples always and ComfyUI unless told otherwise. Not given: as the
    weights in --init, else `base`."""

    condition: Condition | None = option(None, "Training", metavar="NAME")
    """What of a clip the layers learn to start from: `first-frame` gives them its first frame, or first few, so that
    sampling can start from a picture or go on with a video; `keyframes:4` every 4th frame, so that sampling can make
    frames between frames (2 to 8); `none`. Not given: as the weights in --init, else `none`."""

    condition_share: float = option(0.5, "Training", gt=0, le=1)
    """With --condition: share of clips that are shown so. The others are trained as without; with keyframes:4 they are
    keyframes themselves, 4 frames apart, and half of them begin with one that is given."""

    min_snr: float | None = option(None, "Training", gt=0, le=1000, metavar="GAMMA")
    """Weigh noise levels by Min-SNR with this gamma (Hang et al. 2023; 5 is usual): clips with little noise, of which
    there is little to learn, count less. The loss of the steps is then the weighted one, the held-out loss is not. Not
    with --zero-terminal-snr, whose last step would count nothing. Not given: all noise levels count alike."""

    temporal_loss: float = option(0.0, "Training", ge=0, le=100, metavar="WEIGHT")
    """Add to the loss, so many times, the error in the differences between each frame and a random one of the same
    clip: errors in motion count, errors in looks that all frames share do not (after MotionDirector, Zhao et al. 2023).
    1 is usual, 0 adds none. The held-out loss is without it."""

    flicker_loss: float = option(0.0, "Training", ge=0, le=1000, metavar="WEIGHT")
    """Add to the loss, so many times, the change of its error from each frame to the next: what flickers counts, what
    is wrong in the same way all along does not. With --noise flow, under which next to nothing of the loss is flicker,
    20 counts it about as much as all else; with independent noise 1 does. 0 adds none. The held-out loss is without
    it."""

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
