"""--from: what a file says made it makes it again."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from msdv.cli import run as command
from msdv.config import SampleConfig
from msdv.data.video import read_metadata, read_video, write_video
from msdv.errors import MsdvError, UsageError
from msdv.sampling.options import check_options
from msdv.sampling.repeat import repeated

Output = pytest.CaptureFixture[str]


@pytest.fixture
def here(flow_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, as the current one, with a run in it that may be changed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sky").mkdir(parents=True)
    for name in ("temporal.safetensors", "config.toml"):
        shutil.copy(flow_run / name, tmp_path / "runs" / "sky")
    return tmp_path


def sample(*arguments: str) -> int:
    return command(["sample", *arguments, "--device", "cpu"])


def made(out: str, *arguments: str) -> None:
    assert sample("sea", "-o", out, "--frames", "3", "--steps", "1", "--seed", "7", "--fps", "9", *arguments) == 0


@pytest.mark.parametrize("name", ["a.gif", "a.mp4", "a.webm", "a.webp", "a.png", "folder", "a.safetensors"])
def test_every_format_says_what_made_it(here: Path, name: str) -> None:
    values = {"prompt": "sea", "seed": 7, "seeds": "0-3", "frames": 3, "lora": [], "motion": "left:2", "new": 1}
    metadata = {"tool": "msdv 9.0", **values}
    if name.endswith(".safetensors"):
        made(name, "--motion", "left:2")
    else:
        write_video(here / name, [np.zeros((16, 16, 3), np.uint8)] * 2, fps=9, metadata=metadata)
    again, origin = repeated(SampleConfig(out=Path("b.gif"), from_file=Path(name)))  # type: ignore[call-arg]
    assert (again.prompt, again.seed, again.frames, again.motion, again.out) == ("sea", 7, 3, "left:2", Path("b.gif"))
    assert again.from_file is None
    assert origin is not None and origin.path == Path(name)


def test_the_same_frames_come_of_the_file_alone(here: Path, capfd: Output) -> None:
    made("a.gif", "--negative", "land", "--motion", "left:2", "--guidance", "2")
    assert sample("--from", "a.gif", "-o", "b.gif") == 0
    assert (here / "a.gif").read_bytes() == (here / "b.gif").read_bytes()
    assert (here / "b.gif.toml").read_text().replace("b.gif", "a.gif") == (here / "a.gif.toml").read_text()
    assert capfd.readouterr().err.count("the newest run") == 1  # the second time it is named


def test_what_is_given_besides_goes_first(here: Path) -> None:
    made("a.png")
    (here / "r.toml").write_text("[sample]\nguidance = 5.0\n")
    assert sample("--from", "a.png", "night", "-o", "b.png", "--steps", "2", "--config", "r.toml") == 0
    a, b = read_metadata(here / "a.png"), read_metadata(here / "b.png")
    assert (b["prompt"], b["steps"], b["guidance"]) == ("night", 2, 5.0)
    changed = {key for key in a if a[key] != b[key]}
    assert changed == {"prompt", "steps", "guidance"}


def test_options_that_exclude_what_the_file_says_take_its_place(here: Path) -> None:
    metadata = {"tool": "msdv 0.1", "prompt": "sea", "seeds": "0-3", "bf16": True, "window": 8, "overlap": 4}
    metadata |= {"chunk_frames": 4, "base": "old", "model": "old"}
    write_video(here / "a.gif", [np.zeros((16, 16, 3), np.uint8)], fps=9, metadata=metadata)
    for given, expected in (
        ({"seed": 2}, {"seed": 2, "seeds": None, "bf16": True}),
        ({"seeds": "5,6"}, {"seed": 0, "seeds": "5,6"}),
        ({"fp16": True}, {"fp16": True, "bf16": False}),
        ({"window": 4}, {"window": 4, "overlap": None}),
        ({"vram": 6}, {"vram": 6, "chunk_frames": None}),
        ({"model": "builtin"}, {"model": "builtin", "base": None}),
        ({"base": "builtin"}, {"base": "builtin", "model": None}),
        ({}, {"chunk_frames": 4, "base": "old", "overlap": 4}),
    ):
        config = SampleConfig.model_validate({**given, "out": "b.gif", "from_file": "a.gif"})
        again, _ = repeated(config)
        assert {key: getattr(again, key) for key in expected} == expected


def test_a_file_without_settings_takes_the_recipe_beside_it(here: Path, capfd: Output) -> None:
    made("a.png")
    frames, _ = read_video(here / "a.png")
    write_video(here / "a.png", list(frames), fps=9)
    assert sample("--from", "a.png", "-o", "b.png") == 0
    assert "a.png holds no settings: they are from a.png.toml" in capfd.readouterr().err
    assert np.array_equal(read_video(here / "b.png")[0], frames)
    assert sample("--from", "a.png.toml", "-o", "c.png") == 0
    assert (here / "c.png").read_bytes() == (here / "b.png").read_bytes()


def test_other_ways_to_start_take_the_place_of_the_one_in_the_file(here: Path) -> None:
    files = {name: str(here / name) for name in ("a.png", "m.png", "v.gif", "n.safetensors")}
    for path in files.values():
        Path(path).touch()
    a, m, v, n = files.values()
    for said, given, expected in (
        ({"keyframe_passes": 1}, {"window": 8}, {"keyframe_passes": None, "window": 8}),
        ({"cache": 2}, {"loop": True}, {"cache": 1}),
        ({"window": 8, "overlap": 2}, {"cache": 2}, {"window": None, "overlap": None}),
        ({"window": 8}, {"cache": 1}, {"window": 8}),
        ({"image": [a], "mask": m}, {"video": v}, {"image": (), "mask": None}),
        ({"video": v, "strength": 0.3}, {"image": (a,)}, {"video": None, "strength": 0.6}),
        ({"video": v, "strength": 0.3}, {"continue_from": v}, {"video": None, "strength": 0.6}),
        ({"continue_from": v}, {"latents": n}, {"continue_from": None}),
        ({"latents": n}, {"motion": "left"}, {"latents": None}),
        ({"latents": n}, {"motion": "auto"}, {"latents": Path(n)}),
        ({"negative": "land"}, {"guidance": 1.0}, {"negative": ""}),
        ({"negative": "land"}, {"guidance": 2.0}, {"negative": "land"}),
    ):
        metadata = {"tool": "msdv 1", "prompt": "sea", **said}
        write_video(here / "s.png", [np.zeros((16, 16, 3), np.uint8)], fps=9, metadata=metadata)
        again, _ = repeated(SampleConfig.model_validate({**given, "out": "b.gif", "from_file": "s.png"}))
        assert {key: getattr(again, key) for key in expected} == expected
        check_options(again)


def test_the_settings_in_a_folder_may_be_named(here: Path) -> None:
    write_video(here / "folder", [np.zeros((16, 16, 3), np.uint8)], fps=9, metadata={"tool": "msdv 1", "prompt": "sea"})
    config = SampleConfig(out=Path("b.gif"), from_file=Path("folder/settings.json"))  # type: ignore[call-arg]
    assert repeated(config)[0].prompt == "sea"


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("none.gif", None, UsageError, "--from none.gif does not exist: give a file that msdv sample made"),
        ("a.gif", b"text", MsdvError, "--from a.gif: msdv sample did not make it"),
        ("a.mp4", b"text", MsdvError, "--from a.mp4: msdv sample did not make it"),
        ("notes.txt", b"text", MsdvError, "--from notes.txt: msdv sample did not make it"),
        ("b.gif", {"tool": "msdv 1", "prompt": "sea", "model": "gone/a.safetensors"}, UsageError, "gone: give it with"),
        ("b.gif", {"tool": "msdv 1", "prompt": "sea", "base": "/gone/it"}, UsageError, "is gone: give it with --base"),
        ("b.gif", {}, MsdvError, "--from b.gif: msdv sample did not make it"),
        ("b.gif", {"comment": "holiday"}, MsdvError, "msdv sample did not make it"),
        ("b.gif", {"tool": "msdv 1", "prompt": "sea", "steps": 0}, UsageError, "--from b.gif: steps: "),
        ("b.gif", {"tool": "msdv 1", "prompt": "sea", "lora": ["no.bin"]}, UsageError, "--lora no.bin does not exist"),
        ("r.toml", b"[sample]\nsteps = 3\n", MsdvError, "--from r.toml is no recipe of a video"),
    ],
)
def test_files_that_can_not_be_repeated(
    here: Path, name: str, content: object, error: type[Exception], words: str
) -> None:
    if isinstance(content, bytes):
        (here / name).write_bytes(content)
    elif isinstance(content, dict):
        write_video(here / name, [np.zeros((16, 16, 3), np.uint8)], fps=9, metadata=content)
    with pytest.raises(error) as caught:
        repeated(SampleConfig(out=Path("x.gif"), from_file=Path(name)))  # type: ignore[call-arg]
    assert words in str(caught.value)
    assert type(caught.value) is error


def test_other_weights_are_noticed(here: Path, capfd: Output) -> None:
    made("a.gif")
    weights = here / "runs" / "sky" / "temporal.safetensors"
    state = load_file(weights)
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    save_file({key: tensor + 0.1 for key, tensor in state.items()}, weights, metadata=metadata)
    capfd.readouterr()
    assert sample("--from", "a.gif", "-o", "b.gif") == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("msdv sample: --from a.gif: the temporal layers it was made with (")
    assert not (here / "b.gif").exists()
    assert sample("--from", "a.gif", "--model", "runs/sky", "-o", "b.gif") == 0
    assert sample("--from", "b.gif", "--bf16", "-o", "half.gif") == 0


def test_inputs_that_are_gone_or_others_are_noticed(here: Path, capfd: Output) -> None:
    for name, seed in (("n", 0), ("other", 1)):
        noise = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        save_file({"latents": noise}, here / f"{name}.safetensors")
    made("a.gif", "--latents", "n.safetensors")
    assert sample("--from", "a.gif", "-o", "b.gif") == 0
    assert (here / "a.gif").read_bytes() == (here / "b.gif").read_bytes()
    (here / "n.safetensors").replace(here / "moved.safetensors")
    assert sample("--from", "a.gif", "-o", "c.gif") == 2
    assert "n.safetensors, which it was made with, is gone: give it with --latents" in capfd.readouterr().err
    shutil.copy(here / "other.safetensors", here / "n.safetensors")
    assert sample("--from", "a.gif", "-o", "c.gif") == 1
    assert "n.safetensors is another file than the one it was made with" in capfd.readouterr().err
    assert sample("--from", "a.gif", "--latents", "moved.safetensors", "-o", "c.gif") == 0
    assert np.array_equal(read_video(here / "c.gif")[0], read_video(here / "a.gif")[0])


def test_a_plan_for_a_file(here: Path, capfd: Output) -> None:
    made("a.gif")
    capfd.readouterr()
    assert sample("--from", "a.gif", "--plan") == 0
    assert capfd.readouterr().out.startswith("sampling 3 frames of 32x32")
