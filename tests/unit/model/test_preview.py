"""Pictures of how far denoising is."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from msdv.model import preview as preview_module
from msdv.model.base import load_base
from msdv.model.diffusion import TrainingSchedule, denoise, make_scheduler
from msdv.model.preview import latents_to_colours, preview_of, preview_path, to_strip
from tests.tiny import SCHEDULER


@pytest.fixture(scope="module")
def builtin() -> object:
    return load_base("builtin", device=torch.device("cpu"), dtype=torch.float32, parts=("vae",))


def sky(builtin: object) -> Tensor:
    """Latents (1, 4, 9, 16, 16) of blue above green, the border rising from frame to frame."""
    frames = torch.full((9, 3, 128, 128), -0.6)
    for index, frame in enumerate(frames):
        frame[2, : 40 + 5 * index], frame[1, 40 + 5 * index :] = 0.8, 0.1
    return builtin.encode_frames(frames).transpose(0, 1)[None]  # type: ignore[attr-defined]


def test_colours_are_those_of_the_video(builtin: object) -> None:
    latents = sky(builtin)[0].transpose(0, 1)
    strip = to_strip(latents[[0, 4, 8]], latents_to_colours(builtin, latents[4:5]))  # type: ignore[arg-type]
    assert strip.size == (3 * 160, 160)
    wanted = builtin.decode(latents[[0, 4, 8]]).add(1).mul(127.5)  # type: ignore[attr-defined]
    shown = torch.from_numpy(np.asarray(strip.resize((3 * 16, 16))).copy()).float()  # (h, n w, c)
    small = F.adaptive_avg_pool2d(wanted, 16).permute(2, 0, 3, 1).reshape(16, 48, 3)
    fitted = slice(16, 32)
    assert (shown[:, fitted] - small[:, fitted]).abs().mean() < 8
    assert torch.corrcoef(torch.stack([shown.flatten(), small.flatten()]))[0, 1] > 0.7


def exact(latents: Tensor, schedule: TrainingSchedule) -> object:
    """What predicts the noise that is on known latents."""

    def predict(noisy: Tensor, timestep: Tensor, frames: Tensor) -> Tensor:
        signal = schedule._scheduler.alphas_cumprod[int(timestep)].item()
        return (noisy - signal**0.5 * latents) / (1 - signal) ** 0.5

    return predict


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_predictions_show_clean_latents(kind: str) -> None:
    schedule = TrainingSchedule({**SCHEDULER, "prediction_type": kind})
    clean, noise = (torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    t = torch.tensor([500])
    noisy, target = schedule.add_noise(clean, noise, t), schedule.target(clean, noise, t)
    torch.testing.assert_close(schedule.clean(noisy, target, t[0]), clean, atol=1e-5, rtol=1e-4)


def test_a_preview_comes_while_it_denoises_and_goes_with_the_result(
    builtin: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents, schedule, seen = sky(builtin), TrainingSchedule(SCHEDULER), []
    out = tmp_path / "a.gif"

    def on_step(number: int, _: Tensor) -> None:
        with Image.open(preview_path(out)) as image:
            seen.append((number, image.size, image.tobytes()))

    with preview_of(out) as preview:
        assert str(tmp_path / "a.gif.preview.png") in preview.note
        watched = preview.watch(exact(latents, schedule), builtin, schedule, steps=30)  # type: ignore[arg-type]
        denoise(
            watched, torch.randn_like(latents), scheduler=make_scheduler("ddim", SCHEDULER), steps=30, on_step=on_step
        )
        assert [p.name for p in tmp_path.iterdir()] == ["a.gif.preview.png"]
    assert len(seen) == 30
    assert {size for _, size, _ in seen} == {(8 * 160, 160)}
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_removes_it(builtin: object, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), preview_of(tmp_path / "a") as preview:
        latents = sky(builtin)
        schedule = TrainingSchedule(SCHEDULER)
        watched = preview.watch(exact(latents, schedule), builtin, schedule, steps=1)  # type: ignore[arg-type]
        watched(latents, torch.tensor(500), torch.arange(9))
        assert (tmp_path / "a.preview.png").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_trouble_with_it_stops_nothing(builtin: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preview_module, "write_file", full)
    latents, schedule = sky(builtin), TrainingSchedule(SCHEDULER)
    with preview_of(tmp_path / "a.gif") as preview:
        prediction = exact(latents, schedule)
        watched = preview.watch(prediction, builtin, schedule, steps=1)  # type: ignore[arg-type]
        arguments = latents, torch.tensor(500), torch.arange(9)
        assert torch.equal(watched(*arguments), prediction(*arguments))  # type: ignore[operator]
    with preview_of(None) as preview:
        assert preview.watch(prediction, builtin, schedule, steps=1) is prediction  # type: ignore[arg-type]
        assert preview.note == ""
