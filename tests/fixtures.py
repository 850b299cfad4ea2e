"""A tiny image model and a tiny frames folder, made once for all tests that need them."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

SIZE = 32


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with a tiny Stable Diffusion of random weights."""
    from tests.tiny import save_folder

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_folder(folder)
    return folder


@pytest.fixture(scope="session")
def sky_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frames folder of six short sky clips, as prep writes it. Not to be changed: copy it first."""
    from msdv.data.synthetic import caption, render, sample_sky

    data, rng, rows = tmp_path_factory.mktemp("data") / "frames", random.Random(0), []
    for number in range(6):
        sky = sample_sky(rng)
        folder = data / f"clip {number}.mp4"
        folder.mkdir(parents=True)
        for index, frame in enumerate(render(sky, 12, size=SIZE), start=1):
            Image.fromarray(frame).save(folder / f"{index:06d}.jpg", quality=95)
        rows.append({"clip": folder.name, "caption": caption(sky, rng), "fps": 5.0})
    (data / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


@pytest.fixture(scope="session")
def flow_run(tiny_base: Path, sky_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: the tiny image model trained for ten steps, with noise that flows. Not to be changed."""
    from msdv.config import TrainConfig
    from msdv.train import train

    out = tmp_path_factory.mktemp("runs") / "sky"
    config = {"frames": 4, "size": SIZE, "steps": 10, "sample_every": 0, "lr": 1e-2, "noise": "flow", "device": "cpu"}
    train(TrainConfig.model_validate({**config, "base": str(tiny_base), "data": sky_frames, "out": out}))
    return out


@pytest.fixture(scope="session")
def motion_run(tiny_base: Path, sky_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: motion modules trained for ten steps on the tiny image model. Not to be changed."""
    from msdv.config import TrainConfig
    from msdv.train import train

    out = tmp_path_factory.mktemp("runs") / "motion"
    config = {"frames": 4, "size": SIZE, "steps": 10, "sample_every": 0, "lr": 1e-2, "device": "cpu"}
    config |= {"arch": "motion-module", "base": str(tiny_base), "data": sky_frames, "out": out}
    train(TrainConfig.model_validate(config))
    return out
