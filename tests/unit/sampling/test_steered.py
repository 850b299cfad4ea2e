"""--motion and --still: what is read for them, what they make of the noise, what they say when that can't be."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from msdv.cli import run as command
from msdv.config import SampleConfig
from msdv.data.video import read_metadata, write_video
from msdv.errors import MsdvError, UsageError
from msdv.sampling.noise import draw_noise
from msdv.sampling.options import check_options
from msdv.sampling.repeat import repeated
from msdv.sampling.steering import Steering, flow_of_video
from msdv.weights import Motion, TemporalMetadata
from tests.unit.test_weights import METADATA

Output = pytest.CaptureFixture[str]
EVERYWHERE = METADATA.model_copy(
    update={"motion": Motion(field=(((0.01, 0.0),),), left=0.0, share=1.0), "shared_noise": 0.0}
)
"""Of clips in which everything goes to the right."""


@pytest.fixture
def here(flow_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def video(here: Path) -> Path:
    """Eight frames of 96x64 in which everything goes 3 pixels to the left and 1 down a frame."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.normal(size=(96, 140)), (0, 0), 3) * 400 + 128
    frames = [texture[20 - i :, 3 * i :][:64, :96].clip(0, 255).astype(np.uint8) for i in range(8)]
    write_video(here / "clip.webp", [np.repeat(frame[..., None], 3, 2) for frame in frames], fps=9)
    return Path("clip.webp")


def config(**values: object) -> SampleConfig:
    return SampleConfig.model_validate({"prompt": "sea", "out": Path("a.gif"), **values})


def steered(metadata: TemporalMetadata | None = EVERYWHERE, **values: object) -> torch.Tensor:
    """Flow of a picture of 8x8 latents."""
    settings = config(**values)
    found = Steering(settings, metadata, 8, 8, settings.frames).draw(settings, torch.Generator().manual_seed(0))
    assert found.flow is not None
    return found.flow


def test_the_motion_of_a_video_is_made_faster_by_the_gain(video: Path) -> None:
    assert EVERYWHERE.motion is not None
    faster = EVERYWHERE.model_copy(update={"motion": EVERYWHERE.motion.model_copy(update={"gain": 1.5})})
    flow = steered(motion=str(video), frames=3)
    torch.testing.assert_close(steered(faster, motion=str(video), frames=3), 1.5 * flow)


def test_the_motion_of_a_video_is_taken(video: Path, capsys: Output) -> None:
    flow = steered(motion=str(video), frames=8)
    assert flow.shape == (1, 7, 2, 16, 16)
    assert "--motion clip.webp goes 3." in capsys.readouterr().err  # and not that it is too short
    inner = flow[0, :, :, 2:-2, 2:-2].float().mean((0, 2, 3))
    torch.testing.assert_close(inner, torch.tensor([-3.0, 1.0]), atol=0.2, rtol=0)
    assert steered(motion=str(video), frames=3).shape[1] == 2
    large = flow_of_video(video, 16, 16, 8)  # twice the size: twice as far
    torch.testing.assert_close(
        large[0, :, :, 4:-4, 4:-4].float().mean((0, 2, 3)), torch.tensor([-6.0, 2.0]), atol=0.4, rtol=0
    )


def test_what_is_much_faster_than_the_clips_is_said_once(here: Path, capsys: Output) -> None:
    for motion, words in {
        "left:1.9": "",
        "left:20": "--motion left:20 goes 20 pixels a frame, the training clips 0.64: "
        "what is so much faster than they are may flicker",
    }.items():
        settings = config(motion=motion)
        steering = Steering(settings, EVERYWHERE, 8, 8, settings.frames)
        for seed in (0, 1):
            steering.draw(settings, torch.Generator().manual_seed(seed))
        assert " ".join(capsys.readouterr().err.split()) == words


def test_a_video_that_is_shorter_begins_again_and_says_so(video: Path, capsys: Output) -> None:
    flow = steered(motion=str(video), frames=20)
    assert flow.shape[1] == 7
    line = capsys.readouterr().err.splitlines()[0]
    assert line == "--motion clip.webp has 8 frames: its motion begins again after every 7"
    settings = config(motion=str(video), frames=20)
    drawn = Steering(settings, EVERYWHERE, 8, 8, 20).draw(settings, torch.Generator())
    noise = draw_noise(settings, drawn, (1, 4, 20, 8, 8), torch.Generator().manual_seed(0))
    likeness = [(noise[:, :, f] * noise[:, :, f + 1]).mean().item() for f in range(19)]
    assert min(likeness) > 0.3  # it goes on flowing where the video ends


def test_one_frame_takes_the_motion_of_a_video_too(video: Path) -> None:
    assert steered(motion=str(video), frames=1).shape == (1, 1, 2, 16, 16)


def test_a_folder_of_pictures_is_a_video(here: Path) -> None:
    (here / "frames").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number * 40,) * 3).save(here / "frames" / f"{number}.png")
    assert steered(motion="./frames", frames=3).shape[1] == 2


def test_white_stands_still(here: Path) -> None:
    mask = np.zeros((30, 60), np.uint8)  # of which the middle half of the width is seen
    mask[:, :30] = 255
    Image.fromarray(mask).save(here / "mask.png")
    flow = steered(motion="right:2", still=Path("mask.png"))[0, 0, 0]
    assert flow[:, :7].abs().max() < 0.02
    torch.testing.assert_close(flow[:, 9:], torch.full((16, 7), 2.0), atol=0.02, rtol=0)
    half = Image.new("L", (5, 5), 128)
    half.save(here / "grey.png")
    assert steered(motion="right:2", still=Path("grey.png")).max().item() == pytest.approx(1, abs=0.01)


def test_auto_can_be_still_in_places_too(here: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(here / "all.png")
    assert not steered(still=Path("all.png")).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"motion": "no.mp4"},
            "--motion no.mp4 does not exist: give a video whose motion to take, or a direction: left:1.5",
        ),
        ({"still": "no.png"}, "--still no.png does not exist: give a picture, white where nothing is to move"),
        ({"still": "."}, "--still . does not exist: give a picture, white where nothing is to move"),
        (
            {"still": "mask.png", "motion": "none"},
            "--still mask.png: --motion none does not go with it: leave one of them out",
        ),
        (
            {"still": "mask.png", "latents": "noise.safetensors"},
            "--still mask.png: --latents does not go with it: leave one of them out",
        ),
        (
            {"motion": "clip.mp4", "latents": "noise.safetensors"},
            "--motion clip.mp4: the noise in --latents moves as it does: leave one of them out",
        ),
    ],
)
def test_what_can_not_be_is_told_at_once(here: Path, values: dict, message: str) -> None:
    for name in ("mask.png", "clip.mp4"):
        (here / name).touch()
    with pytest.raises(UsageError) as error:
        check_options(config(**values))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"motion": "text.mp4"}, r"--motion text\.mp4 can't be read \(.*\): give another video"),
        ({"motion": "one.png"}, r"--motion one\.png is one picture, in which nothing moves: give a video"),
        ({"motion": "./empty"}, r"--motion empty has no frames: give a video, or a folder of pictures"),
        ({"still": Path("text.mp4")}, r"--still text\.mp4 can't be read \(it is no picture\): give a \.png, \.jpg or"),
    ],
)
def test_files_that_can_not_be_used_are_told(here: Path, values: dict, message: str) -> None:
    (here / "text.mp4").write_text("no video")
    (here / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(here / "one.png")
    with pytest.raises(MsdvError, match=message) as error:
        steered(**values)
    assert not isinstance(error.value, UsageError)


@pytest.mark.parametrize("metadata", [None, METADATA.model_copy(update={"motion": None, "noise": "independent"})])
@pytest.mark.parametrize("values", [{"motion": "left"}, {"motion": "zoom:1"}, {"still": Path("mask.png")}])
def test_layers_that_know_no_flowing_noise_can_not_be_steered(metadata: TemporalMetadata | None, values: dict) -> None:
    option = " ".join(f"--{name} {value}" for name, value in values.items())
    with pytest.raises(UsageError) as error:
        steered(metadata, **values)
    assert str(error.value) == (
        f"{option}: these temporal layers were not trained on noise that flows: "
        "leave it out, or train with --noise flow"
    )


def test_a_result_is_repeated_with_the_files_that_steered_it(here: Path, flow_run: Path, video: Path) -> None:
    Image.new("L", (16, 16), 40).save(here / "mask.png")

    def sample(*arguments: str) -> int:
        return command(["sample", *arguments, "--device", "cpu"])

    made = ("sea", "--model", str(flow_run), "--frames", "3", "--steps", "1", "--motion", str(video))
    assert sample(*made, "--still", "mask.png", "-o", "a.gif") == 0
    assert sample("--from", "a.gif", "-o", "b.gif") == 0
    assert (here / "a.gif").read_bytes() == (here / "b.gif").read_bytes()
    said = read_metadata(here / "a.gif")
    assert (said["motion"], said["still"], said["motion_used"]) == ("clip.webp", "mask.png", "clip.webp")
    assert set(said["inputs"]) == {"clip.webp", "mask.png"}
    assert sample(*made[:-1], "left:2+zoom:1", "-o", "c.gif") == 0
    assert read_metadata(here / "c.gif")["motion_used"] == "left:2+zoom:1"
    assert (here / "c.gif").read_bytes() != (here / "a.gif").read_bytes()

    without, _ = repeated(config(prompt="", from_file=Path("a.gif"), motion="none", out=Path("d.gif")))
    assert (without.motion, without.still) == ("none", None)
    video.write_bytes(video.read_bytes() + b" ")
    with pytest.raises(MsdvError, match=r"clip\.webp is another file than the one it was made with"):
        repeated(config(prompt="", from_file=Path("a.gif"), out=Path("d.gif")))
    video.unlink()
    with pytest.raises(UsageError, match=r"clip\.webp, which it was made with, is gone: give it with --motion"):
        repeated(config(prompt="", from_file=Path("a.gif"), out=Path("d.gif")))
