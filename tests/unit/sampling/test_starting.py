"""What a video starts from, at the command line: pictures, masks, other videos; and the passes of keyframes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import msdv.sampling.load
import msdv.sampling.sampler
from msdv.cli import run
from msdv.config import TrainConfig
from msdv.data.video import read_metadata, read_video, write_video
from msdv.model.base import load_base
from msdv.model.guidance import Guided
from msdv.sampling.starting import Known
from msdv.train import train

Sample = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def runs(tiny_base: Path, sky_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders by what was trained; `inpaint-...` on a model with 9 input channels."""
    from tests.tiny import save_folder, tiny_pipeline

    folder = tmp_path_factory.mktemp("conditioned")
    inpaint = save_folder(folder / "base", tiny_pipeline(in_channels=9))
    wishes = {
        "none": (tiny_base, {}),
        "first": (tiny_base, {"condition": "first-frame"}),
        "keyframes": (tiny_base, {"condition": "keyframes:2", "noise": "flow"}),
        "inpaint-none": (inpaint, {}),
        "inpaint-first": (inpaint, {"condition": "first-frame"}),
    }
    for name, (base, options) in wishes.items():
        settings = {"frames": 5, "size": 32, "steps": 1, "sample_every": 0, "lr": 1e-2, "device": "cpu", "holdout": 0}
        settings |= {"base": str(base), "data": sky_frames, "out": folder / name, **options}
        train(TrainConfig.model_validate(settings))
    return {name: folder / name for name in wishes}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures a.png and b.png, a mask m.png white on its right, a video v.gif of 7 frames, 6 a second."""
    folder, rng = tmp_path_factory.mktemp("start"), np.random.default_rng(0)
    frames = [np.kron(rng.integers(0, 255, (4, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(7)]
    for name, frame in zip(("a.png", "b.png"), frames, strict=False):
        Image.fromarray(frame).save(folder / name)
    mask = np.zeros((32, 48), np.uint8)
    mask[:, 24:] = 255
    Image.fromarray(mask).save(folder / "m.png")
    Image.fromarray(mask[:16]).save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"text")
    write_video(folder / "v.gif", frames, fps=6, metadata={"fps": 6})
    return folder


@pytest.fixture
def make(runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Sample:
    """Sample from a run by its name; the result's tensors."""

    def sample(name: str, *options: object, frames: int = 5) -> dict[str, torch.Tensor]:
        arguments = ["--model", runs[name], "--frames", frames, "--steps", 2, "--device", "cpu", *options]
        out = tmp_path / "out.safetensors"
        rc = run(["sample", "sea", "--overwrite", "-o", str(out), *map(str, arguments)])
        assert rc == 0, capfd.readouterr().err
        return load_file(out)

    return sample


def decoded(runs: dict[str, Path], path: Path) -> np.ndarray:
    """A picture, cut to 32x32, through the autoencoder and back."""
    base = load_base(str(runs["none"].parent / "base"), device=torch.device("cpu"), dtype=torch.float32)
    pixels = np.asarray(Image.open(path).convert("RGB"))[:, 8:40].astype(np.float32)
    latents = base.encode_frames(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)
    return base.decode(latents)[0].permute(1, 2, 0).div(2).add(0.5).clamp(0, 1).numpy()


def test_a_picture_in_all_frames_is_shown_to_any_number_of_them() -> None:
    known = Known(picture=torch.rand(1, 5, 1, 2, 2).expand(-1, -1, 6, -1, -1), blank=torch.zeros(1, 4, 2, 2))
    for frames in (2, 6, 8):
        shown, _ = known.shown(None, frames)
        assert shown is not None and shown.shape == (1, 5, frames, 2, 2)


@pytest.mark.parametrize("name", ["first", "none", "inpaint-first"])
def test_the_first_frame_is_the_picture(name: str, runs: dict[str, Path], files: Path, make: Sample) -> None:
    frames = make(name, "--image", f"0:{files / 'a.png'}")["frames"]
    np.testing.assert_allclose(frames[0], decoded(runs, files / "a.png"), atol=1e-4)
    plain = make(name)["frames"]
    assert not torch.allclose(frames[1], plain[1], atol=1e-4)  # the others see it


def test_a_picture_that_was_given_is_not_averaged_with_its_neighbours(
    runs: dict[str, Path], files: Path, tmp_path: Path
) -> None:
    shown = []
    for steady in ("0", "2"):
        out = tmp_path / steady
        arguments = ["--model", str(runs["first"]), "--frames", "4", "--steps", "2", "--device", "cpu", "-o", str(out)]
        assert run(["sample", "sea", "--image", str(files / "a.png"), "--steady", steady, *arguments]) == 0
        shown.append(read_video(out)[0])
    same = [np.array_equal(*pair) for pair in zip(*shown, strict=True)]
    assert same == [True, False, False, False]


def test_pictures_stand_where_they_were_put(
    runs: dict[str, Path], files: Path, make: Sample, capfd: pytest.CaptureFixture[str]
) -> None:
    frames = make("first", "--image", files / "a.png", "--image", f"-2:{files / 'b.png'}")["frames"]
    np.testing.assert_allclose(frames[0], decoded(runs, files / "a.png"), atol=1e-4)
    np.testing.assert_allclose(frames[3], decoded(runs, files / "b.png"), atol=1e-4)
    assert "know pictures at the start: expect jumps around frame 3" in capfd.readouterr().err


def test_layers_that_were_not_trained_for_it_are_told_of(
    files: Path, make: Sample, capfd: pytest.CaptureFixture[str]
) -> None:
    make("none", "--image", files / "a.png")
    line = "not trained on frames that are given: expect a jump after them (msdv train --condition first-frame"
    assert line in capfd.readouterr().err
    make("first", "--image", files / "a.png")
    assert "expect" not in capfd.readouterr().err


def watch(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `Guided` is made with."""
    seen: list[dict[str, Any]] = []

    def watched(*args: Any, **options: Any) -> Guided:
        seen.append(options)
        return Guided(*args, **options)

    monkeypatch.setattr(msdv.sampling.sampler, "Guided", watched)
    return seen


def test_inpainting_layers_as_those_of_2022_see_the_picture_in_all_frames(
    files: Path, make: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    make("inpaint-none", "--image", files / "a.png")
    make("inpaint-none", "--image", files / "a.png", "--mask", files / "m.png")
    make("inpaint-first", "--image", files / "a.png", "--mask", files / "m.png")
    make("inpaint-none")
    keep, half, also, blank = (options["condition"] for options in seen)
    assert keep.shape == (1, 5, 5, 4, 4)
    assert (keep[:, 0] == 0).all()
    assert half[0, 0].unique(dim=0).tolist() == [[[0, 0, 1, 1]] * 4]
    assert torch.equal(half[:, 1:, 0], half[:, 1:, 4])
    assert not torch.equal(half[:, 1:], keep[:, 1:])
    assert torch.equal(half, also)
    assert (blank[:, 0] == 1).all()
    assert all(options["given"] is None for options in seen)


def test_inpainting_layers_see_pictures_at_frames_in_those_frames(
    files: Path, make: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    make("inpaint-none", "--image", f"0:{files / 'a.png'}", "--image", f"3:{files / 'b.png'}")
    make("inpaint-first", "--image", files / "a.png")
    make("inpaint-none")
    placed, first, blank = (options["condition"] for options in seen)
    assert placed[0, 0, :, 0, 0].tolist() == [0, 1, 1, 0, 1]
    assert first[0, 0, :, 0, 0].tolist() == [0, 1, 1, 1, 1]
    assert torch.equal(placed[:, :, 1], blank[:, :, 1])


@pytest.mark.parametrize(("name", "lead"), [("first", 2), ("none", 1), ("inpaint-none", 1), ("keyframes", 1)])
def test_a_video_goes_on_with_its_frames_and_at_its_rate(
    name: str, lead: int, runs: dict[str, Path], files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    out, before = tmp_path / "out.png", read_video(files / "v.gif")[0]
    arguments = ["--model", runs[name], "--continue", files / "v.gif", "--frames", 3, "--steps", 2, "--device", "cpu"]
    assert run(["sample", "sea", "-o", str(out), *map(str, arguments)]) == 0
    frames, fps = read_video(out)
    assert (len(frames), fps) == (7 + 3, 6)
    assert np.abs(frames[:7].astype(int) - before[:, :, 8:40]).max() <= 1
    if name == "first":
        assert seen[0]["given"].which.nonzero().flatten().tolist() == list(range(lead))
        base = load_base(str(runs["none"].parent / "base"), device=torch.device("cpu"), dtype=torch.float32)
        last = torch.from_numpy(before[6, :, 8:40].astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        torch.testing.assert_close(seen[0]["given"].latents[:, :, 1], base.encode_frames(last))
    assert run(["sample", "sea", "-o", str(out), "--overwrite", "--fps", "9", *map(str, arguments)]) == 0
    assert read_video(out)[1] == 9
    assert read_metadata(out)["fps"] == 9


@pytest.mark.parametrize(
    ("frames", "options", "windows"), [(9, (), 1 + 2), (6, (), 1 + 2), (17, ("--keyframe-passes", 1), 1 + 4)]
)
def test_keyframes_come_first_and_the_frames_between_them_in_windows(
    frames: int, options: tuple[object, ...], windows: int, make: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    made = make("keyframes", *options, frames=frames)["frames"]
    assert len(made) == frames
    assert len(seen) == windows
    assert seen[0]["given"] is None
    assert all(options["given"].which[::2].all() for options in seen[1:])
    assert not any(options["given"].which[1::2].any() for options in seen[1:])
    assert all(options["given"].which.shape == (5,) or frames == 6 for options in seen[1:])


def test_pictures_at_keyframes_stay_through_all_passes(runs: dict[str, Path], files: Path, make: Sample) -> None:
    frames = make("keyframes", "--image", files / "a.png", "--image", f"4:{files / 'b.png'}", frames=9)["frames"]
    np.testing.assert_allclose(frames[0], decoded(runs, files / "a.png"), atol=1e-4)
    np.testing.assert_allclose(frames[4], decoded(runs, files / "b.png"), atol=1e-4)


def test_passes_can_be_left_out(make: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch)
    make("keyframes", "--keyframe-passes", 0, frames=9)
    make("keyframes", "--window", 5, frames=9)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("name", "options", "words", "code"),
    [
        (
            "first",
            "--image gone.png",
            "--image gone.png: there is no such file: give a picture, with a frame before it",
            2,
        ),
        ("first", "--image 5:a.png", "--image 5:a.png: the video has frames 0 to 4 (-1 is the last one): choose", 2),
        ("first", "--image a.png --image -5:b.png", "--image -5:b.png: frame 0 has a picture already (a.png)", 2),
        ("first", "--image broken.png", "--image broken.png can't be read (it is no picture): give a .png, .jpg or", 1),
        (
            "first",
            "--mask m.png",
            "--mask m.png: there is no picture that it belongs to: add --image, or leave it out",
            2,
        ),
        ("first", "--image a.png --mask m.png", "is no inpainting model (9 input channels): choose one with --base", 2),
        (
            "inpaint-none",
            "--image a.png --mask small.png",
            "--mask small.png is 48x16, a.png 48x32: make the mask as",
            2,
        ),
        ("inpaint-none", "--image 0:a.png --mask m.png", "--mask m.png: it holds for all frames: give one --image", 2),
        ("inpaint-none", "--image a.png --mask broken.png", "--mask broken.png can't be read (it is no picture)", 1),
        (
            "first",
            "--continue gone.mp4",
            "--continue gone.mp4 does not exist: give a video, or a folder of pictures",
            2,
        ),
        ("first", "--continue broken.png", "--continue broken.png can't be read (it is no picture): give another", 1),
        ("first", "--continue v.gif --image a.png", "--continue v.gif: the video starts from that one already", 2),
        (
            "first",
            "--keyframe-passes 1",
            "--keyframe-passes 1: these temporal layers were not trained to make frames",
            2,
        ),
        ("keyframes", "--keyframe-passes 1 --window 3", "--keyframe-passes 1 makes the video in another way than", 2),
        ("keyframes", "--image 3:a.png", "--image 3:a.png: frame 3 is no keyframe, of which there is one every 2", 2),
        ("keyframes", "--frames 6 --image -1:a.png", "choose 4, or pass --frames 7", 2),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    name: str,
    options: str,
    words: str,
    code: int,
    runs: dict[str, Path],
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(files)
    out = tmp_path / "out.gif"
    arguments = ["--model", str(runs[name]), "--frames", "5", "--device", "cpu", "-o", str(out), *options.split()]
    assert run(["sample", "sea", *arguments]) == code
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert words in error
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_the_models_is_loaded_for_pictures_that_cannot_be_read(
    runs: dict[str, Path], files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(msdv.sampling.load, "load_base", lambda *_, **__: pytest.fail("a model was loaded"))
    for options in (["--image", "broken.png"], ["--mask", "m.png"], ["--continue", "gone.mp4"]):
        monkeypatch.chdir(files)
        assert run(["sample", "sea", "--model", str(runs["first"]), "-o", str(tmp_path / "a.gif"), *options]) in (1, 2)


def test_noise_from_a_file_and_pictures_go_together(
    runs: dict[str, Path], files: Path, make: Sample, tmp_path: Path
) -> None:
    save_file({"latents": torch.randn(1, 4, 5, 4, 4)}, tmp_path / "noise.safetensors")
    frames = make("first", "--image", files / "a.png", "--latents", tmp_path / "noise.safetensors")["frames"]
    np.testing.assert_allclose(frames[0], decoded(runs, files / "a.png"), atol=1e-4)
