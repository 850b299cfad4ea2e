"""What only a CUDA device can show."""

from pathlib import Path

import numpy as np
import pytest
import torch

from msdv.config import SampleConfig, TrainConfig
from msdv.data.video import read_video
from msdv.model.inflate import inflate
from msdv.model.job import Job
from msdv.model.known import Architecture
from msdv.model.memory import CARD_CONTEXT, Rehearsal, train_step
from msdv.model.optimizer import MasterOptimizer
from msdv.model.savings import Savings
from msdv.sample import sample
from msdv.train import train
from tests.tiny import tiny_unet

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("precision", ["fp16", "bf16", None])
def test_training_runs_in_every_precision_and_resumes(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, precision: str | None, offload: bool
) -> None:
    values: dict[str, object] = {"frames": 4, "size": 32, "steps": 12, "checkpoint_every": 6, "lr": 1e-2}
    values |= {"base": str(tiny_base), "data": sky_frames, "out": tmp_path / "run", "offload_optim": offload}
    if precision:
        values[precision] = True
    report = train(TrainConfig.model_validate(values))
    losses = [row["loss"] for row in report.run.read_log() if isinstance(row.get("loss"), float)]
    assert len(losses) == 12
    assert sum(losses[-4:]) < sum(losses[:4])
    assert train(TrainConfig(resume=str(tmp_path / "run"), steps=14)).steps == 14


def test_sampling_gives_nearly_the_frames_of_the_cpu(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    values: dict[str, object] = {"frames": 4, "size": 32, "steps": 6, "sample_every": 0, "lr": 1e-2, "device": "cpu"}
    train(TrainConfig.model_validate({**values, "base": str(tiny_base), "data": sky_frames, "out": tmp_path / "run"}))
    frames = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        sample(SampleConfig(prompt="sea", out=out, model=str(tmp_path / "run"), frames=5, steps=3, device=device))
        frames.append(read_video(out)[0].astype(int))
    assert np.abs(frames[0] - frames[1]).mean() < 2


@pytest.mark.parametrize("on_host", [False, True])
def test_the_average_of_the_weights_is_beside_the_optimizer(on_host: bool) -> None:
    model = inflate(tiny_unet()).to("cuda")
    settings = {"lr": 1e-2, "conv_lr": 1.0, "weight_decay": 0.0, "ema": 0.9}
    optimizer = MasterOptimizer(model.temporal_parameters(), **settings, on_host=on_host)
    for parameter in optimizer.masters.values():
        assert parameter.grad is not None
        parameter.grad.fill_(1e-3)
    optimizer.step(1e-2, 1.0)
    state = optimizer.state_dict()
    kept = [*state["masters"].values(), *state["average"].values()]
    kept += [moments["exp_avg"] for moments in state["adamw"]["state"].values()]
    assert {tensor.device.type for tensor in kept} == {"cpu" if on_host else "cuda"}
    key = "conv_in.temporal_conv.weight"
    optimizer.use_average(True)
    averaged = model.temporal_parameters()[key].clone()
    optimizer.use_average(False)
    assert averaged.device.type == "cuda"
    assert not torch.equal(averaged, model.temporal_parameters()[key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("on_host", [False, True])
def test_savings_change_no_gradient_and_take_less_memory(dtype: torch.dtype, on_host: bool) -> None:
    """Copies beside the computation that came too late or too soon would show here."""
    torch.manual_seed(0)
    model = inflate(tiny_unet(blocks=4)).to("cuda", dtype)
    with torch.no_grad():
        for parameter in model.temporal_parameters().values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    sample, text = (torch.randn(shape, device="cuda").to(dtype) for shape in ((1, 4, 8, 64, 64), (1, 7, 32)))
    settings = {"lr": 1e-4, "conv_lr": 1.0, "weight_decay": 0.0}
    optimizer = MasterOptimizer(model.temporal_parameters(), **settings, on_host=on_host)
    expected, peaks = None, []
    for savings in (
        Savings(),
        Savings("full"),
        Savings("full", host_checkpoints=True),
        Savings("full", host_checkpoints=True, chunk_frames=2),
        Savings("full", host_checkpoints=True, chunk_frames=2, stream_weights=True),
    ):
        model.save_memory(savings)
        for _ in range(3):  # in host memory used before, too
            optimizer.drop_gradients()
            torch.cuda.reset_peak_memory_stats()
            optimizer.backward(model(sample, torch.tensor([500], device="cuda"), text).float().square().mean())
        peaks.append(torch.cuda.max_memory_allocated())
        gradients = optimizer.gradients.clone()
        expected = gradients if expected is None else expected
        tolerance = 1e-3 if dtype == torch.float32 else 3e-2
        assert (gradients - expected).norm() < tolerance * expected.norm(), savings
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "savings",
    [Savings(), Savings("full"), Savings("full", host_checkpoints=True, chunk_frames=4)],
    ids=["none", "full", "host and chunks"],
)
def test_a_step_takes_the_memory_that_is_predicted(dtype: torch.dtype, savings: Savings) -> None:
    """Against torch's own peak. Kernels' workspaces come on top of tensors: the allowance for CUDA is for them."""
    architecture = Architecture("tiny", dict(tiny_unet(blocks=4).config))
    job = Job(architecture, frames=16, height=512, width=512, dtype=dtype)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = inflate(tiny_unet(blocks=4)).to("cuda", dtype)
    model.save_memory(savings)
    optimizer = MasterOptimizer(
        model.temporal_parameters(),
        lr=1e-4,
        conv_lr=0.25,
        weight_decay=0.01,
        on_host=True,
        loss_scaling=dtype == torch.float16,
    )
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        train_step(job, model, optimizer)
    measured = torch.cuda.max_memory_allocated() - before
    predicted = Rehearsal(job).train(savings, offload_optim=True).device.size
    assert 0.9 * measured - CARD_CONTEXT < predicted < 1.03 * measured + 2**20
