"""What is predicted on fake tensors, against what torch's allocator hands out when the same is done on real ones."""

import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msdv.data import encode
from msdv.data.steady import steadied
from msdv.model.base import Base
from msdv.model.diffusion import denoise, make_scheduler
from msdv.model.ends import with_ends
from msdv.model.guidance import Guided, OneText
from msdv.model.inflate import VideoUNet, inflate
from msdv.model.job import Job
from msdv.model.known import Architecture, find_architecture
from msdv.model.memory import AVERAGED, GIF_WAITING, Rehearsal, margin, train_step
from msdv.model.optimizer import MasterOptimizer
from msdv.model.parts import SamplingDefaults
from msdv.model.savings import Savings, cheapest_first, unit_costs
from msdv.model.windows import Length, windowed
from tests.tiny import tiny_text_encoder, tiny_unet, tiny_vae

WITHIN = 0.03


def architecture(**unet: Any) -> Architecture:
    return Architecture(
        "tiny", dict(tiny_unet(**unet).config), dict(tiny_vae().config), tiny_text_encoder().config.to_dict()
    )


class LiveTensors(TorchDispatchMode):
    """Bytes of all tensors that operations made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in taken:
                taken.add(tensor.untyped_storage().data_ptr())
                self.add(tensor.untyped_storage().nbytes())
                weakref.finalize(tensor.untyped_storage(), self.add, -tensor.untyped_storage().nbytes())
        return out

    def add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def measured(prepare: Callable[[], Any], act: Callable[[Any], Any]) -> tuple[int, int]:
    """The most bytes during `act` of tensors made since before `prepare`: as tensors, and as torch's allocator has
    them, with what kernels need for themselves."""
    live = LiveTensors()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, live:
        state = prepare()
        live.most = live.now
        with record_function("measured"):
            act(state)
    events = profiler.profiler.kineto_results.events()
    (start,) = (event.start_ns() for event in events if event.name() == "measured")
    now = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now) if event.start_ns() >= start else now
    return live.most, most


def real_model(job: Job) -> VideoUNet:
    unet = tiny_unet(**TINY[job.architecture.name]).to(job.dtype)
    return inflate(unet, job.group_norm, arch=job.arch, mid_block=job.mid_block, channels_last=True)


def inputs(job: Job) -> tuple[Tensor, Tensor, Tensor | None]:
    shape = (job.made, job.height // 8, job.width // 8)
    condition = torch.zeros(1, 5, *shape) if job.architecture.unet["in_channels"] == 9 else None
    if condition is not None:
        condition = condition.expand(job.batch_size, -1, -1, -1, -1)
    return torch.randn(job.batch_size, 4, *shape), torch.randn(job.batch_size, 77, 32), condition


TINY: dict[str, dict[str, Any]] = {
    "two blocks": {},
    "four blocks": {"blocks": 4},
    "inpainting": {"in_channels": 9},
    "second": {"sd2": True},
}


def job(name: str = "two blocks", frames: int = 8, size: int = 128, **settings: Any) -> Job:
    unet = dict(tiny_unet(**TINY[name]).config)
    base = architecture()
    described = Architecture(name, unet, base.vae, base.text_encoder)
    return Job(described, **{"frames": frames, "height": size, "width": size, "card": False, **settings})


HALF = {"dtype": torch.bfloat16}
MOTION = {"arch": "motion-module", "mid_block": True}
TRAININGS = {
    "plain": (job(), Savings()),
    "few frames": (job(frames=3), Savings()),
    "many frames": (job(frames=25, size=64), Savings()),
    "wide": (job(height=64, width=192), Savings()),
    "batch of 3": (job(batch_size=3, size=64), Savings()),
    "half precision": (job(**HALF), Savings()),
    "joint norm": (job(group_norm="joint"), Savings()),
    "checkpoints": (job(), Savings("full")),
    "checkpoints, half, joint": (job("four blocks", **HALF, group_norm="joint"), Savings("full")),
    "checkpoints on the host": (job(), Savings("full", host_checkpoints=True)),
    "chunks": (job(), Savings("full", chunk_frames=2)),
    "chunks, joint norm": (job(group_norm="joint", **HALF), Savings("full", chunk_frames=3)),
    "chunks without checkpoints": (job(), Savings(chunk_frames=4)),
    "offload": (job(), Savings()),
    "offload, half, checkpoints": (job(**HALF), Savings("full")),
    "motion modules": (job(**MOTION), Savings()),
    "motion modules, chunks, half": (job("four blocks", **MOTION, **HALF), Savings("full", chunk_frames=3)),
    "averaged weights": (job("four blocks", size=64, ema=0.99), Savings("full")),
    "inpainting": (job("inpainting", batch_size=2, size=64), Savings()),
    "losses": (job(min_snr=5.0, temporal_loss=1.0, flicker_loss=1.0, batch_size=2, size=64), Savings()),
    "given frames": (job(given=True, batch_size=2), Savings("full")),
    "given frames, inpainting": (job("inpainting", given=True, temporal_loss=1.0, size=64), Savings()),
    "streamed weights": (job("four blocks", size=64), Savings(stream_weights=True)),
    "streamed weights, half, chunks": (
        job(**HALF),
        Savings("full", stream_weights=True, host_checkpoints=True, chunk_frames=4),
    ),
    "linear projections": (job("second", **HALF), Savings("full", host_checkpoints=True, chunk_frames=4)),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_step_takes_what_is_predicted(name: str) -> None:
    what, savings = TRAININGS[name]
    offload = name.startswith("offload")

    def prepare() -> Any:
        model = real_model(what)
        model.save_memory(savings)
        optimizer = MasterOptimizer(
            model.temporal_parameters(),
            lr=1e-4,
            conv_lr=0.25,
            weight_decay=0.01,
            ema=what.ema,
            on_host=offload,
            loss_scaling=False,
        )
        train_step(what, model, optimizer)
        return model, optimizer

    live, allocated = measured(prepare, lambda state: train_step(what, *state))
    predicted = Rehearsal(what).train(savings, offload_optim=offload).device
    assert predicted.size == pytest.approx(live, rel=WITHIN)
    assert predicted.size == pytest.approx(allocated, rel=WITHIN)
    assert sum(predicted.parts.values()) == predicted.size


def test_partial_checkpoints_take_what_is_predicted() -> None:
    what = job("four blocks")
    model = real_model(what)
    latents, text, _ = inputs(what)
    costs = unit_costs(model, latents, torch.zeros(1, dtype=torch.long), text)
    rehearsal = Rehearsal(what)
    order = cheapest_first(costs)
    assert [cost.name for cost in rehearsal.unit_costs()] == order
    peaks = []
    for count in (0, len(order) // 2, len(order)):
        savings = Savings(tuple(order[:count]))

        def prepare(savings: Savings = savings) -> Any:
            model = real_model(what)
            model.save_memory(savings)
            optimizer = MasterOptimizer(model.temporal_parameters(), lr=1e-4, conv_lr=0.25, weight_decay=0.01)
            train_step(what, model, optimizer)
            return model, optimizer

        real, _ = measured(prepare, lambda state: train_step(what, *state))
        peaks.append(rehearsal.train(savings).device.size)
        assert peaks[-1] == pytest.approx(real, rel=WITHIN)
    assert peaks[0] > peaks[1] > peaks[2]


SAMPLES = {
    "guidance": (job(guidance=7.5), Savings()),
    "no guidance": (job(guidance=1.0), Savings()),
    "half precision": (job("four blocks", **HALF), Savings()),
    "inpainting, joint": (job("inpainting", group_norm="joint"), Savings()),
    "chunks": (job(frames=12), Savings(chunk_frames=3)),
    "chunks, joint": (job(frames=9, size=64, group_norm="joint"), Savings(chunk_frames=4)),
    "windows": (job(frames=20, size=64, length=Length(8, 3)), Savings()),
    "windows and chunks": (job(frames=20, size=64, length=Length(9, 2, loop=True)), Savings(chunk_frames=4)),
    "frames around": (job(frames=6, size=64, around=True), Savings()),
    "loop": (job(frames=6, size=64, length=Length(None, 2, loop=True)), Savings()),
    "reuse": (job("four blocks", frames=8, size=64, cache=2), Savings()),
    "reuse and chunks": (job("four blocks", frames=8, size=64, cache=2), Savings(chunk_frames=2)),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_denoising_takes_what_is_predicted(name: str) -> None:
    what, savings = SAMPLES[name]

    def prepare() -> Any:
        model = real_model(what)
        model.save_memory(savings)
        return model, tiny_vae().to(what.dtype)

    def act(state: Any) -> None:
        noise, text, condition = inputs(what)
        scheduler = make_scheduler("ddim", {})
        texts = OneText(text), OneText(text)
        guided = Guided(state[0], *texts, guidance=what.guidance, condition=condition, cache=what.cache)
        shown = with_ends(guided, what.arch, what.length, what.made) if what.ends else guided
        prediction = windowed(shown, what.length, what.made)
        denoise(prediction, noise, scheduler=scheduler, steps=2)

    real, _ = measured(prepare, act)
    denoising = Rehearsal(what).sample(savings)[1]
    assert denoising.stage == "denoising"
    assert denoising.device.size == pytest.approx(real, rel=WITHIN)


def real_base(what: Job, vae: Any) -> Base:
    return Base(
        name="tiny",
        unet=None,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        scheduler_config={},
        sampling=SamplingDefaults(),
        temporal=None,
        group_norm=None,
        device=torch.device("cpu"),
        dtype=what.dtype,
        unet_config={},
        vae_config=dict(vae.config),
    )


@pytest.mark.parametrize("size", [64, 256, 512])
def test_decoding_takes_what_is_predicted(size: int) -> None:
    what = job(frames=20 if size < 512 else 5, size=size)
    latents = torch.randn(what.frames, 4, size // 8, size // 8)

    def act(vae: Any) -> None:
        for _ in real_base(what, vae).decode_passes(latents):
            pass

    real, _ = measured(tiny_vae, act)
    decoding = Rehearsal(what).sample(Savings())[2]
    assert decoding.stage == "decoding"
    # The latents were there before the measurement began; torch does not see the frames that wait for a palette.
    waiting = what.frames * size * size * 3
    assert decoding.device.size == pytest.approx(real + latents.nbytes + waiting, rel=WITHIN)


def test_frames_that_are_written_as_they_come_take_no_memory() -> None:
    few, many = (Rehearsal(job(frames=frames, size=64)).sample(Savings())[2] for frames in (6_000, 12_000))
    assert few.device.parts["pictures"] == pytest.approx(GIF_WAITING, rel=0.01)
    assert many.device.parts["pictures"] == few.device.parts["pictures"]
    assert GIF_WAITING == encode.MOST_WAITING


def test_frames_that_wait_to_be_averaged_are_counted() -> None:
    what = job(frames=12, size=128, videos=4, steady=3)
    frames = np.random.default_rng(0).integers(0, 256, (what.videos, what.frames, 128, 128, 3), np.uint8)
    videos = [steadied((frame.copy() for frame in video), what.steady) for video in frames]
    tracemalloc.start()
    for _ in zip(*videos, strict=True):
        pass
    real = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    decoding = Rehearsal(what).sample(Savings())[2]
    assert decoding.device.parts[AVERAGED] == pytest.approx(real, rel=0.05)


def test_frames_of_a_samples_gif_in_training_come_together() -> None:
    what = job(frames=20, size=256)
    latents = torch.randn(what.frames, 4, 32, 32)
    real, _ = measured(tiny_vae, lambda vae: real_base(what, vae).decode_latents(latents))
    decoding = Rehearsal(what).training_sample(Savings())[1]
    assert decoding.device.size > real


def test_encoding_takes_what_is_predicted() -> None:
    what = job(size=256)

    def prepare() -> Any:
        return tiny_unet(), tiny_vae(), tiny_text_encoder()

    def act(state: Any) -> None:
        real_base(what, state[1]).encode_frames(torch.randn(8, 3, 256, 256))

    real, _ = measured(prepare, act)
    assert Rehearsal(what).encode().device.size == pytest.approx(real, rel=WITHIN)


def test_a_card_and_its_computer_are_told_apart() -> None:
    on_card = Rehearsal(job(card=True, dtype=torch.float16))
    here, away = (on_card.train(Savings(), offload_optim=offload) for offload in (False, True))
    assert here.device.parts["optimizer"] > 0 and here.host.parts.get("optimizer", 0) < 1000
    assert away.host.parts["optimizer"] > 0 and away.device.parts.get("optimizer", 0) < 1000
    assert away.device.size < here.device.size
    kept = on_card.train(Savings("full", host_checkpoints=True), offload_optim=True)
    assert kept.device.size < on_card.train(Savings("full"), offload_optim=True).device.size
    assert kept.work.moved > away.work.moved


def test_a_card_holds_no_attention_scores() -> None:
    # One clip of 2 frames with 4,096 positions: the scores of one layer, twice, would be 8 heads x 8192 x 4096 values.
    what = job(frames=2, size=512, card=True, dtype=torch.float16)
    assert Rehearsal(what).train(Savings("full"), offload_optim=True).device.size < 8 * 8192 * 4096 * 2


def test_memory_of_windows_does_not_grow_with_the_frames() -> None:
    short, long = (
        Rehearsal(job(frames=frames, size=64, length=Length(8, 3))).sample(Savings())[1] for frames in (40, 400)
    )
    latents = 360 * 4 * 8 * 8 * 4
    assert short.device.size < long.device.size < short.device.size + 8 * latents
    assert long.work.flops / short.work.flops == pytest.approx(80 / 8, rel=0.02)  # windows


def test_the_frames_of_stable_diffusion_fit_a_small_card() -> None:
    base = find_architecture("sd-1.5")
    settings = {"frames": 120, "height": 512, "width": 512, "dtype": torch.float16, "guidance": 7.5}
    peak = Rehearsal(Job(base, **settings)).sample(Savings(chunk_frames=10))[1].device.size
    assert peak + sum(margin(peak, card=True).values()) <= 5.0 * 2**30
