"""--lora-rank from training to files."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import msdv.train
from msdv.config import ExportConfig, SampleConfig, TrainConfig
from msdv.data.video import read_video
from msdv.errors import UsageError
from msdv.export import export
from msdv.run import Run
from msdv.sample import sample
from msdv.train import train
from tests.runs import assert_equal, settings, state_of

CHANGES = {"lora_rank": 4, "fp16": True, "offload_optim": True, "ema": 0.9, "checkpointing": "full", "chunk_frames": 2}


@pytest.fixture(scope="module")
def run(tiny_base: Path, sky_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "look"
    report = train(settings(tiny_base, sky_frames, out, holdout=0.3, **CHANGES))
    assert any("with temporal layers and LoRA" in line for line in report.lines())
    assert any(line.endswith(f"--lora {out / 'lora.safetensors'}") for line in report.lines())
    return report.run


def test_a_resumed_run_ends_with_the_same_weights(
    run: Run, tiny_base: Path, sky_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    real = msdv.train._Loop._step

    def dies(self: msdv.train._Loop, step: int, stop: threading.Event) -> msdv.train._Outcome:
        if step == 4:
            raise KilledError
        return real(self, step, stop)

    monkeypatch.setattr(msdv.train._Loop, "_step", dies)
    with pytest.raises(KilledError):
        train(settings(tiny_base, sky_frames, tmp_path / "cut", holdout=0.3, **CHANGES))
    monkeypatch.setattr(msdv.train._Loop, "_step", real)
    cut = Run(tmp_path / "cut")
    before = cut.lora.read_bytes()
    with pytest.raises(UsageError, match=r"--lora-rank 8: .* was started with 4"):
        train(TrainConfig(resume=str(cut.folder), lora_rank=8))
    train(TrainConfig(resume=str(cut.folder)))
    assert cut.lora.read_bytes() == run.lora.read_bytes() != before
    assert cut.weights.read_bytes() == run.weights.read_bytes()
    assert_equal(state_of(cut), state_of(run))


def test_both_halves_learn_and_stay_out_of_the_temporal_weights(run: Run) -> None:
    state = load_file(run.lora)
    assert all(tensor.abs().max() > 0 for tensor in state.values())
    assert not any("lora" in key for key in load_file(run.weights))
    assert load_file(run.checkpoints()[-1][1] / "lora.safetensors").keys() == state.keys()


def test_sampling_leaves_it_out_unless_asked(run: Run, tmp_path: Path) -> None:
    look = tmp_path / "look.safetensors"
    report = export(ExportConfig(source=str(run.folder), to="lora", out=look))
    assert report.lines()[-1] == f'sample from it: msdv sample "a prompt" --model {run.folder} --lora {look} -o out.gif'
    with safe_open(look, framework="pt") as file:
        assert file.metadata()["ss_network_dim"] == "4"
        assert "modelspec.architecture" not in file.metadata()  # the tiny model is no Stable Diffusion
    frames = {}
    loras = {"without": (), "with": (str(run.lora),), "kohya": (str(look),), "nothing": (f"{run.lora}:0",)}
    for name, lora in loras.items():
        out = tmp_path / name
        sample(SampleConfig(prompt="sea", out=out, model=str(run.folder), frames=3, steps=2, device="cpu", lora=lora))
        frames[name] = read_video(out)[0]
    assert np.array_equal(frames["with"], frames["kohya"])
    assert np.array_equal(frames["without"], frames["nothing"])
    assert not np.array_equal(frames["with"], frames["without"])
    again = tmp_path / "again.safetensors"
    export(ExportConfig(source=str(run.lora), to="lora", out=again))
    assert all(torch.equal(tensor, load_file(again)[key]) for key, tensor in load_file(look).items())


def test_a_run_without_one_says_so_and_leaves_none_behind(
    run: Run, flow_run: Path, tiny_base: Path, sky_frames: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"no lora.safetensors in .*: give the folder of a run with --lora-rank"):
        export(ExportConfig(source=str(flow_run), to="lora", out=tmp_path / "look.safetensors"))
    config = settings(tiny_base, sky_frames, tmp_path / "run", steps=1, lora_rank=2)
    with pytest.raises(UsageError, match="--lora-rank 2: --evaluate trains nothing"):
        msdv.train.evaluate(config)
    assert train(config).run.lora.is_file()
    assert not train(config.model_copy(update={"lora_rank": 0, "overwrite": True})).run.lora.exists()
