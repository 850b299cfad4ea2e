"""Predicts the memory that training and sampling take: their own code is run on tensors that have shapes and no memory.

A rehearsal goes through the stages of a command in the command's order: encode frames and texts, optimizer steps, a
sample. It needs neither weights nor a graphics card, and takes seconds at any size.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from msdv.model.base import Base
from msdv.model.build import network_config, quiet
from msdv.model.diffusion import TrainingSchedule, denoise, make_scheduler
from msdv.model.ends import with_ends
from msdv.model.guidance import Guided, OneText
from msdv.model.inflate import VideoUNet, inflate
from msdv.model.job import Job
from msdv.model.ledger import KEPT, Ledger, Peak, Work, card_kernels
from msdv.model.optimizer import MasterOptimizer
from msdv.model.parts import SamplingDefaults
from msdv.model.placeholders import HOST, Placeholders
from msdv.model.savings import Savings, UnitCost, cheapest_first, unit_costs
from msdv.model.step import Objective, add_gradients
from msdv.model.trained_lora import add_lora
from msdv.model.windows import Length, windowed

CARD_CONTEXT = 500 * 2**20
"""Bytes that CUDA, its libraries and their workspaces take beside all tensors. An allowance, not predicted."""
PROGRAM = 900 * 2**20
"""The same in the computer's memory: Python and the libraries."""
GIF_WAITING = 64 * 2**20
"""Bytes of frames that wait in memory for a gif's palette (data/encode.py); more wait on the disk."""
STEADIED, STEADYING = 31, 287
"""Bytes a pixel, in the computer's memory, of each frame that waits to be averaged with later ones (data/steady.py),
and of what averaging one takes, the frame itself included."""
FRAGMENTATION = 0.05
"""Share of the tensors' bytes that torch's allocator holds besides on a card, in gaps. An allowance, not predicted."""

UNET, TEMPORAL, GRADIENTS = "frozen UNet weights", "temporal weights", "gradients of the temporal weights"
LORA = "LoRA weights"
OPTIMIZER, OTHERS, DATA = "optimizer", "text encoder and autoencoder", "latents, noise and texts"
RESULT, AVERAGED = "pictures", "frames that are averaged"
CARD_ALLOWANCE, PROGRAM_ALLOWANCE = "CUDA", "program"
FIXED = (UNET, TEMPORAL, LORA, GRADIENTS, OPTIMIZER, OTHERS, AVERAGED, CARD_ALLOWANCE, PROGRAM_ALLOWANCE)
"""What does not grow with the number of frames."""


@dataclass(frozen=True)
class Footprint:
    """What a stage of a command takes."""

    stage: str
    device: Peak
    """On the card, or on the processor where there is none."""
    host: Peak
    """In the computer's memory beside a card; else empty."""
    work: Work = field(default_factory=Work)
    """Of one optimizer step or one denoising step."""


_WINDOWS = 2
"""Of a video in windows, so many are rehearsed: they are alike."""


class _FewWindows(Length):
    def starts(self, frames: int, step: int) -> list[int]:
        return super().starts(frames, step)[:_WINDOWS]


class Rehearsal:
    """A job on placeholders. Its stages can be gone through in any order, with other savings each time."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._placeholders = Placeholders()
        self._ledger = self._new_ledger()
        self._optimizer: tuple[bool, MasterOptimizer] | None = None
        self._hooks: list[RemovableHandle] = []
        architecture = job.architecture
        # On torch's own meta device nothing is drawn and copied; placeholders take the place of its tensors afterwards.
        with quiet(), torch.device("meta"):
            unet = UNet2DConditionModel(**network_config(UNet2DConditionModel, architecture.unet))
            self._model = inflate(
                unet, job.group_norm, arch=job.arch, mid_block=job.mid_block, channels_last=not job.card
            )
            if job.lora_rank:
                add_lora(self._model, job.lora_rank)
        with self._counting():
            materialize(self._model, job.device, job.dtype)

    def _new_ledger(self) -> Ledger:
        return Ledger(self._placeholders, host_beside=self.job.card)

    @contextmanager
    def _from_scratch(self) -> Iterator[None]:
        """Inside it, what was there before is not counted."""
        before, self._ledger = self._ledger, self._new_ledger()
        try:
            yield
        finally:
            self._ledger = before

    @contextmanager
    def _counting(self) -> Iterator[Ledger]:
        with ExitStack() as stack:
            for context in (quiet(), card_kernels(), self._ledger):
                stack.enter_context(context)
            self._ledger.work = Work()
            yield self._ledger

    def _footprint(self, stage: str, since: int) -> Footprint:
        host = self._ledger.peak("cpu", since) if self.job.card else Peak()
        return Footprint(stage, self._ledger.peak(self.job.device.type, since), host, self._ledger.work)

    def _prepare_model(self, savings: Savings) -> VideoUNet:
        model = self._model
        model.save_memory(savings)
        temporal = model.temporal_parameters()
        self._ledger.label((p for p in model.parameters() if not p.requires_grad), UNET)
        self._ledger.label(temporal.values(), TEMPORAL)
        self._ledger.label(model.lora_parameters().values(), LORA)
        return model

    def _others(self, text: bool) -> list[Any]:
        """The autoencoder, and the text encoder if wanted, in that order."""
        architecture = self.job.architecture
        with quiet(), torch.device("meta"):
            modules = [AutoencoderKL(**network_config(AutoencoderKL, architecture.vae))]
            if text:
                from transformers import CLIPTextConfig, CLIPTextModel

                modules.append(CLIPTextModel(CLIPTextConfig.from_dict(architecture.text_encoder)))
        with self._counting():
            for module in modules:
                materialize(module.requires_grad_(False).eval(), self.job.device, self.job.dtype)
        for module in modules:
            self._ledger.label((*module.parameters(), *module.buffers()), OTHERS)
        return modules

    def _base(self, vae: AutoencoderKL) -> Base:
        """As much of a base model as encoding and decoding frames look at."""
        job = self.job
        return Base(
            name=job.architecture.name,
            unet=None,
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            scheduler_config={},
            sampling=SamplingDefaults(),
            temporal=None,
            group_norm=None,
            device=job.device,
            dtype=job.dtype,
            unet_config=job.architecture.unet,
            vae_config=job.architecture.vae,
        )

    def _inputs(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Latents, text, and the condition of an inpainting model, on the device."""
        job, unet = self.job, self.job.architecture.unet
        cell, channels = job.architecture.cell, unet.get("in_channels", 4)
        shape = (job.made, job.height // cell, job.width // cell)
        latents = torch.zeros(job.batch_size, 4, *shape, device=job.device)
        text = torch.zeros(job.batch_size, 77, unet.get("cross_attention_dim", 1280), device=job.device)
        condition = None
        if channels > 4:
            condition = torch.zeros(1, channels - 4, *shape, device=job.device).expand(job.batch_size, -1, -1, -1, -1)
        self._ledger.label([t for t in (latents, text, condition) if t is not None], DATA)
        return latents, text, condition

    def encode(self) -> Footprint:
        """Frames and a text to what is cached, beside the UNet, as loading an image model leaves it."""
        job = self.job
        with self._from_scratch():
            vae, text = self._others(text=True)
            with self._counting():
                self._model.save_memory(Savings())
            self._ledger.label((p for p in self._model.parameters() if not p.requires_grad), UNET)
            with self._counting(), torch.no_grad():
                pictures = torch.zeros(min(8, job.frames), 3, job.height, job.width)
                self._base(vae).encode_frames(pictures).to(HOST)
                self._encode_text(text)
                return self._footprint("encoding frames and texts", 0)

    def _encode_text(self, text: Any) -> None:
        text(torch.zeros(1, text.config.max_position_embeddings, dtype=torch.long, device=self.job.device))

    def train(self, savings: Savings, *, offload_optim: bool = False) -> Footprint:
        """An optimizer step that is not the first."""
        with self._counting() as ledger:
            model = self._prepare_model(savings)
            optimizer = self._prepare_optimizer(offload_optim)
            since, ledger.work = ledger.now, Work()
            train_step(
                self.job,
                model,
                optimizer,
                on_batch=lambda tensors: ledger.label(tensors, DATA),
                after_forward=lambda: ledger.label_alive(KEPT),
            )
            return self._footprint("training step", since)

    def _prepare_optimizer(self, offload_optim: bool) -> MasterOptimizer:
        if self._optimizer is None or self._optimizer[0] != offload_optim:
            self._forget_optimizer()
            job, trained = self.job, self._model.trained_parameters()
            self._hooks = [p.register_post_accumulate_grad_hook(self._label_gradient) for p in trained.values()]
            optimizer = MasterOptimizer(
                trained,
                lr=1e-4,
                conv_lr=0.25,
                weight_decay=0.01,
                ema=job.ema,
                on_host=offload_optim,
                loss_scaling=job.dtype == torch.float16,
            )
            optimizer.step(1e-4, 1.0)  # the first one makes the moments
            self._ledger.label_alive(OPTIMIZER)
            self._optimizer = offload_optim, optimizer
        return self._optimizer[1]

    def _label_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._ledger.label([parameter.grad], GRADIENTS)

    def _forget_optimizer(self) -> None:
        self._optimizer = None
        for hook in self._hooks:
            hook.remove()

    def training_sample(self, savings: Savings, *, offload_optim: bool = False) -> list[Footprint]:
        """A sample gif of a training: model and optimizer stay, the autoencoder comes when it is needed."""
        with self._counting():
            self._prepare_optimizer(offload_optim)
        denoising, latents = self._denoise(savings)
        (vae,) = self._others(text=False)
        return [denoising, self._decode("decoding a sample", vae, latents, together=True)]

    def sample(self, savings: Savings) -> list[Footprint]:
        """`msdv sample`: texts, denoising beside the autoencoder, decoding without the UNet."""
        with self._from_scratch():
            vae, text = self._others(text=True)
            with self._counting(), torch.no_grad():
                self._prepare_model(savings)
                self._encode_text(text)
                texts = self._footprint("encoding texts", 0)
            del text
            denoising, latents = self._denoise(savings)
        with self._from_scratch():
            self._ledger.label((*vae.parameters(), *vae.buffers()), OTHERS)
            return [texts, denoising, self._decode("decoding", vae, latents, together=False)]

    def unit_costs(self) -> list[UnitCost]:
        """What partial checkpointing can take, in the order in which it does: those units of the network first that
        free most memory for least work."""
        with self._from_scratch(), self._counting():
            model = self._prepare_model(Savings())
            latents, text, condition = self._inputs()
            sample = latents if condition is None else torch.cat([latents, condition], dim=1)
            timesteps = torch.zeros(latents.shape[0], dtype=torch.long, device=latents.device)
            costs = unit_costs(model, sample.to(self.job.dtype), timesteps, text.to(self.job.dtype))
        by_name = {cost.name: cost for cost in costs}
        return [by_name[name] for name in cheapest_first(costs)]

    def _denoise(self, savings: Savings) -> tuple[Footprint, Tensor]:
        with self._counting() as ledger, torch.no_grad():
            model = self._prepare_model(savings)
            since, ledger.work = ledger.now, Work()
            noise, text, condition = self._inputs()
            guided = Guided(
                model,
                OneText(text),
                OneText(text),
                guidance=self.job.guidance,
                condition=condition,
                cache=self.job.cache,
            )
            length, frames = self.job.length, self.job.made
            shown = with_ends(guided, self.job.arch, length, frames) if self.job.ends else guided
            prediction = windowed(shown, _FewWindows(length.window, length.overlap, length.loop), frames)
            latents = denoise(prediction, noise, scheduler=make_scheduler("ddim", {}), steps=1)
            count = len(length.starts(frames, 0))
            ledger.work = ledger.work.times(count / min(count, _WINDOWS))
            return self._footprint("denoising", since), latents[:, :, : self.job.frames]

    def _decode(self, stage: str, vae: AutoencoderKL, latents: Tensor, *, together: bool) -> Footprint:
        """`together`: all frames come together in memory; else each is written when it is decoded, but for what waits
        for a gif's palette."""
        job = self.job
        with self._counting() as ledger, torch.no_grad():
            since, waiting = ledger.now, {} if together else self._waiting()
            for label, frames in waiting.items():
                ledger.label([frames], label)
            passes = self._base(vae).decode_passes(latents[0].transpose(0, 1))
            pictures = [next(passes)]
            # The passes are alike: the first and the last tell the peak, with what those between them made, or with a
            # pass of each other video.
            a_pass = len(pictures[0])
            more = max(0, job.frames - 2 * a_pass) if together else (job.videos - 1) * a_pass
            pictures.append(torch.zeros(more, job.height, job.width, 3, dtype=torch.uint8, device=HOST))
            pictures += islice(passes, 1)
            ledger.label(pictures, RESULT)
            del passes
            if together:
                whole = torch.zeros(job.frames, *pictures[0].shape[1:], dtype=torch.uint8, device=HOST)
                ledger.label([whole], RESULT)
            return self._footprint(stage, since)

    def _waiting(self) -> dict[str, Tensor]:
        """Bytes in the computer's memory, by what they hold, of frames on their way to a file: those that wait to be
        averaged, and for a gif's palette."""
        job = self.job
        around = 2 * min(job.steady, job.frames - 1) if job.length.loop else 0  # the ends of a loop come again
        reach = min(job.steady, job.frames + around - 1)
        each = STEADYING + STEADIED * job.videos * reach if reach else 0
        palette = min(3 * job.videos * job.frames * job.height * job.width, GIF_WAITING)
        sizes = {AVERAGED: each * job.height * job.width, RESULT: palette}
        return {label: torch.zeros(size, dtype=torch.uint8, device=HOST) for label, size in sizes.items()}


def margin(tensors: int, *, card: bool) -> dict[str, int]:
    """The allowances, by name, for memory in which tensors take so many bytes."""
    if not card:
        return {PROGRAM_ALLOWANCE: PROGRAM}
    return {CARD_ALLOWANCE: CARD_CONTEXT, "fragmentation": int(tensors * FRAGMENTATION)}


def train_step(
    job: Job,
    model: VideoUNet,
    optimizer: MasterOptimizer,
    *,
    on_batch: Callable[[Iterable[Tensor]], None] = lambda tensors: None,
    after_forward: Callable[[], None] = lambda: None,
) -> None:
    """The training loop's own step, on zeros of the job's shapes."""
    objective = Objective(TrainingSchedule({}), job.min_snr, job.temporal_loss, job.flicker_loss)

    def loss(_: int) -> Tensor:
        batch = _batch(job, next(model.parameters()).device)
        on_batch(batch.values())
        loss = objective.loss(model, **batch)
        del batch
        after_forward()
        return loss

    add_gradients(optimizer, loss, 1)
    optimizer.step(1e-4, 1.0)


def _batch(job: Job, device: torch.device) -> dict[str, Tensor]:
    """Arguments of `Objective.loss`."""
    b, unet, cell = job.batch_size, job.architecture.unet, job.architecture.cell
    height, width = job.height // cell, job.width // cell
    latents = torch.zeros(b, 4, job.frames, height, width, device=device)
    batch = {
        "latents": latents,
        "noise": torch.zeros_like(latents),
        "timesteps": torch.zeros(b, dtype=torch.long, device=device),
        "text": torch.zeros(b, 77, unet.get("cross_attention_dim", 1280), device=device),
    }
    if unet.get("in_channels", 4) > 4:
        batch["blank"] = torch.zeros(1, 4, height, width, device=device)
    if job.temporal_loss:
        batch["anchor"] = torch.zeros(b, dtype=torch.long, device=device)
    if job.given:
        batch["given"] = torch.zeros(b, job.frames, dtype=torch.bool, device=HOST)
        batch["given"][:, 0] = True
    return batch


def materialize(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Put uninitialised tensors of this device and dtype in the place of a module's parameters and buffers; what is
    shared stays shared, the order in memory stays as it is."""
    made: dict[int, Any] = {}

    def like(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=kind, device=device)

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(like(parameter), requires_grad=parameter.requires_grad)
                    made[-id(parameter)] = parameter  # kept, so that no other gets its id
                part._parameters[name] = made[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = like(buffer)
