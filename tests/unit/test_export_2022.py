"""Export of a folder of the 2022 model, which has its temporal layers inside its UNet."""

from pathlib import Path

import pytest
import torch

from msdv.config import ExportConfig, SampleConfig
from msdv.data.video import read_video
from msdv.errors import UsageError
from msdv.export import export
from msdv.model.base import load_base
from msdv.sample import sample
from msdv.weights import load_temporal

PIPELINE = Path(__file__).parents[1] / "golden" / "2022" / "text" / "pipeline"


def test_the_layers_inside_become_a_file(tmp_path: Path) -> None:
    out = tmp_path / "motion.safetensors"
    export(ExportConfig(source=str(PIPELINE), out=out))
    state, metadata = load_temporal(out)
    base = load_base(str(PIPELINE), device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(base.temporal, dict)
    assert state.keys() == base.temporal.keys()
    assert all(torch.equal(state[key], base.temporal[key].half()) for key in state)
    assert (metadata.arch, metadata.group_norm, metadata.steps) == ("pseudo3d", "joint", 0)
    assert (metadata.base, metadata.unet_hash) == (str(PIPELINE.resolve()), base.unet_hash)


@pytest.mark.parametrize("to", ["msdv", "pipeline", "2022"])
def test_what_was_exported_samples_the_same(to: str, tmp_path: Path) -> None:
    out = tmp_path / ("motion.safetensors" if to == "msdv" else "out")
    export(ExportConfig(source=str(PIPELINE), to=to, out=out))  # type: ignore[arg-type]
    frames = []
    for name, model in (("before", PIPELINE), ("after", out)):
        config = SampleConfig(prompt="sea", out=tmp_path / name, model=str(model), frames=3, steps=2, size=32)
        sample(config.model_copy(update={"device": "cpu"}))
        frames.append(read_video(tmp_path / name)[0].astype(int))
    assert abs(frames[0] - frames[1]).max() <= (0 if to == "2022" else 1)


def test_what_does_not_fit_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="these temporal layers are pseudo3d"):
        export(ExportConfig(source=str(PIPELINE), to="motion-adapter", out=tmp_path / "adapter"))
    with pytest.raises(UsageError, match="is an image model without temporal layers"):
        export(ExportConfig(source=str(tiny_base), out=tmp_path / "a.safetensors"))
    assert not list(tmp_path.iterdir())
