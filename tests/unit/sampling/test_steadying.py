"""--steady: what is averaged, what stays as it is, and who decides it."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from msdv.config import SampleConfig
from msdv.data.steady import steadied
from msdv.data.video import read_metadata, read_video
from msdv.model.base import Base
from msdv.sample import sample
from msdv.sampling.results import Steadying, decoded_frames


def made(run: Path, out: Path, **changes: object) -> np.ndarray:
    values = {"prompt": "sea", "out": out, "model": str(run), "frames": 5, "steps": 2, "device": "cpu", **changes}
    sample(SampleConfig.model_validate(values))
    return read_video(out)[0]


def test_frames_are_those_that_were_made_steadied(flow_run: Path, tmp_path: Path) -> None:
    plain = made(flow_run, tmp_path / "plain")
    found = made(flow_run, tmp_path / "steady", steady=2)
    assert np.array_equal(found, np.stack(list(steadied(plain, 2))))
    assert not np.array_equal(found, plain)
    assert [read_metadata(tmp_path / name)["steady"] for name in ("plain", "steady")] == [0, 2]


def test_each_video_of_a_grid_is_steadied_by_itself(flow_run: Path, tmp_path: Path) -> None:
    alone = made(flow_run, tmp_path / "one", steady=1, seed=4)
    grid = made(flow_run, tmp_path / "two", steady=1, seeds="3,4")
    height, width = alone.shape[1:3]
    assert np.array_equal(grid[:, -height:, -width:], alone)


def test_numbers_stay_what_the_latents_are(flow_run: Path, tmp_path: Path) -> None:
    for name, steady in (("a", 0), ("b", 2)):
        values = {"prompt": "sea", "out": tmp_path / f"{name}.safetensors", "model": str(flow_run), "frames": 3}
        sample(SampleConfig.model_validate({**values, "steps": 1, "device": "cpu", "steady": steady}))
    one, other = (load_file(tmp_path / f"{name}.safetensors")["frames"] for name in "ab")
    assert np.array_equal(one, other)


class _Decoder:
    """Stands for an image model: a latent is a picture already."""

    def decode_passes(self, latents: torch.Tensor) -> list[torch.Tensor]:
        pictures = latents[:, :3].permute(0, 2, 3, 1)
        return [pictures[:2].byte(), pictures[2:].byte()]


def test_the_last_frame_of_a_loop_is_the_first_ones_neighbour() -> None:
    frames = torch.arange(5.0).add(100).view(1, 1, 5, 1, 1).expand(1, 4, 5, 40, 40)
    base: Base = _Decoder()  # type: ignore[assignment]

    def first(steadying: Steadying) -> list[int]:
        return [int(frame[0, 0, 0]) for frame in decoded_frames(base, frames, steadying)]

    assert first(Steadying()) == [100, 101, 102, 103, 104]
    straight, loop = first(Steadying(1)), first(Steadying(1, loop=True))
    assert straight[0] == 100  # and the next one: half way up, rounded to the even
    assert loop[0] == 101  # and 104 before it, which counts less
    assert len(loop) == 5
    assert loop[1:-1] == straight[1:-1]
    assert first(Steadying(1, frozenset({0}), loop=True))[0] == 100
    assert len(first(Steadying(9, loop=True))) == 5


def test_the_image_model_says_how_much_but_not_for_noise_that_is_given(
    tiny_base: Path, flow_run: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    usual = {"scheduler": "ddim", "steps": 2, "guidance": 4.0, "steady": 3}
    (base / "sampling.json").write_text(json.dumps(usual), encoding="utf-8")
    noise = np.random.default_rng(0).normal(size=(1, 4, 5, 4, 4)).astype(np.float32)
    save_file({"latents": noise}, tmp_path / "noise.safetensors")
    used = {}
    for name, options in {
        "usual": {},
        "asked": {"steady": 1},
        "given": {"latents": tmp_path / "noise.safetensors"},
        "both": {"latents": tmp_path / "noise.safetensors", "steady": 2},
    }.items():
        made(flow_run, tmp_path / name, base=str(base), **options)
        used[name] = read_metadata(tmp_path / name)["steady"]
    assert used == {"usual": 3, "asked": 1, "given": 0, "both": 2}
