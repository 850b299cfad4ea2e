"""Several videos of one command: prompts in a file, seeds side by side."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import msdv.sampling.sampler
from msdv.cli import run as command
from msdv.config import SampleConfig
from msdv.data.video import read_metadata, read_video, write_video
from msdv.errors import MsdvError, UsageError
from msdv.sampling.grid import tile_at
from msdv.sampling.shots import is_finished, own_share, parse_seeds, read_prompts, shots_of

Output = pytest.CaptureFixture[str]


@pytest.fixture
def here(flow_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, as the current one, with a run in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "sky").symlink_to(flow_run)
    return tmp_path


def sample(*arguments: str) -> int:
    return command(["sample", *arguments, "--frames", "3", "--steps", "1", "--device", "cpu"])


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [3]), ("0-3", [0, 1, 2, 3]), ("3,8,21", [3, 8, 21]), ("8, 2-3", [8, 2, 3]), ("0-63", list(range(64)))],
)
def test_lists_of_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing is no seed: give 0-15, or 3,8,21"),
        ("1,,2", "nothing is no seed"),
        ("a", "a is no seed"),
        ("-3", "-3 is no seed"),
        ("1-", "1- is no seed"),
        ("5-2", "5-2 goes down: give 2-5"),
        ("1,2-3,2", "2 is there twice: leave one out"),
        ("0-3,0", "0 is there twice"),
        ("0-64", "more than 64 don't fit into one picture"),
        ("0-99999999999", "more than 64"),
        ("9223372036854775808", "a seed must be below 2 to the 63rd"),
    ],
)
def test_what_is_no_list_of_seeds(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_seeds(text)
    assert words in str(caught.value)


def test_a_file_of_prompts_is_read_as_people_write_them(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeff# skies\r\nclouds\r\n\r\n  sunset, höher  \n# no\nnight # 2\r".encode())
    assert read_prompts(file) == ["clouds", "sunset, höher", "night # 2"]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, UsageError, "does not exist: give a text file with a prompt a line"),
        (b"", MsdvError, "holds no prompt: write one a line"),
        (b"\n # only\n#this\n", MsdvError, "holds no prompt"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", MsdvError, "is no UTF-8 text: save it with that encoding"),
        (b"sea\x00weed", MsdvError, "is no UTF-8 text"),
        ("clouds".encode("utf-16"), MsdvError, "is no UTF-8 text"),
    ],
)
def test_files_without_prompts(tmp_path: Path, content: bytes | None, error: type[Exception], words: str) -> None:
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(error) as caught:
        read_prompts(tmp_path / "p.txt")
    assert words in str(caught.value)
    assert type(caught.value) is error


def test_results_are_numbered_as_wide_as_need_be(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("sea\n" * 1200)
    for out, first, last in (("a/b.gif", "a/b-0001.gif", "a/b-1200.gif"), ("folder", "folder-0001", "folder-1200")):
        shots = shots_of(SampleConfig(prompts=tmp_path / "p.txt", out=Path(out)))  # type: ignore[call-arg]
        assert (str(shots[0].out), str(shots[-1].out)) == (first, last)
        assert (shots[5].prompt, shots[5].prompts) == ("sea", None)


def test_processes_share_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shots = [SampleConfig(prompt=str(n), out=Path("a.gif")) for n in range(5)]
    assert own_share(shots) == shots
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert [shot.prompt for shot in own_share(shots)] == ["1", "3"]


def test_a_video_of_each_line_is_that_of_the_prompt_alone(here: Path, capfd: Output) -> None:
    (here / "p.txt").write_text("sea\n# no\nnight\n")
    assert sample("--prompts", "p.txt", "-o", "out.png", "--seed", "4") == 0
    output = capfd.readouterr()
    assert output.out.startswith("2 videos in ") and output.out.endswith(": out-001.png to out-002.png\n")
    assert "out-002.png (2 of 2): night" in output.err
    assert sample("night", "-o", "alone.png", "--seed", "4") == 0
    assert (here / "alone.png").read_bytes() == (here / "out-002.png").read_bytes()
    assert read_metadata(here / "out-001.png")["prompt"] == "sea"
    assert (here / "out-002.png.toml").read_text().replace("out-002", "alone") == (here / "alone.png.toml").read_text()


def test_what_is_finished_is_left_alone_and_what_is_another_is_not_replaced(here: Path, capfd: Output) -> None:
    (here / "p.txt").write_text("sea\nnight\n")
    many = ("--prompts", "p.txt", "-o", "out")
    assert sample(*many) == 0
    before = (here / "out-001" / "000001.png").stat().st_mtime_ns
    (here / "p.txt").write_text("sea\nnight\ndawn\n")
    capfd.readouterr()
    assert sample(*many) == 0
    output = capfd.readouterr()
    assert "2 of 3 videos are there already, made with these settings" in output.err
    assert output.out.startswith("1 videos in ") and ", 2 were there already: out-001 to out-003" in output.out
    assert (here / "out-001" / "000001.png").stat().st_mtime_ns == before

    assert sample(*many, "--guidance", "2") == 2
    assert "out-001 exists, made with --guidance " in capfd.readouterr().err
    (here / "p.txt").write_text("land\nnight\ndawn\n")
    assert sample(*many) == 2
    assert "out-001 exists, made with PROMPT sea: choose another -o, or pass --overwrite" in capfd.readouterr().err
    assert sample(*many, "--overwrite") == 0
    assert "1 videos in " in capfd.readouterr().out
    assert read_metadata(here / "out-001")["prompt"] == "land"


def test_a_file_that_changed_is_told_as_such(tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    made = {"tool": "msdv", "prompt": "sea", "image": "a.jpg", "inputs": {"a.jpg": "0" * 64}}
    write_video(out, [np.zeros((8, 8, 3), np.uint8)] * 2, fps=5, metadata=made)
    assert is_finished(out, made, overwrite=False)
    with pytest.raises(UsageError, match=r"made with files of the same names that have changed since: choose another"):
        is_finished(out, made | {"inputs": {"a.jpg": "1" * 64}}, overwrite=False)
    with pytest.raises(UsageError, match=r"made with --image a.jpg: choose another"):
        is_finished(out, made | {"image": "b.jpg", "inputs": {"b.jpg": "1" * 64}}, overwrite=False)


def test_a_file_that_is_not_ours_stays(here: Path, capfd: Output) -> None:
    (here / "p.txt").write_text("sea\nnight\n")
    (here / "out-002.gif").write_text("mine")
    assert sample("--prompts", "p.txt", "-o", "out.gif") == 2
    assert "out-002.gif exists, and msdv did not make it" in capfd.readouterr().err
    assert not (here / "out-001.gif").exists()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted: 1 of 3 videos are finished, the same command goes on with the others"),
        (OSError(28, "No space left on device"), 1, "1 of 3 videos are finished, the same command goes on"),
        (MsdvError("the denoised latents are not finite"), 1, "1 of 3 videos are finished"),
    ],
)
def test_an_end_before_the_end_keeps_what_is_finished(
    here: Path, capfd: Output, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    (here / "p.txt").write_text("sea\nnight\ndawn\n")
    real, calls = msdv.sampling.sampler.denoise, []

    def fails(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(msdv.sampling.sampler, "denoise", fails)
    assert sample("--prompts", "p.txt", "-o", "out.gif") == code
    assert words in capfd.readouterr().err
    assert sorted(path.name for path in here.glob("out*")) == ["out-001.gif", "out-001.gif.toml"]
    assert sample("--prompts", "p.txt", "-o", "out.gif") == 0
    assert "2 videos in" in capfd.readouterr().out


def test_each_process_makes_its_own(here: Path, capfd: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "p.txt").write_text("sea\nnight\ndawn\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, there in ((1, ["out-002.gif"]), (0, ["out-001.gif", "out-002.gif", "out-003.gif"])):
        monkeypatch.setenv("RANK", str(rank))
        assert sample("--prompts", "p.txt", "-o", "out.gif") == 0
        assert sorted(path.name for path in here.glob("out*.gif")) == there
    assert sample("sea", "-o", "one.gif") == 2
    assert "several processes would make the same video" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["grid.png", "grid", "grid.safetensors"])
def test_a_tile_of_the_grid_is_the_video_of_its_seed(here: Path, name: str, capfd: Output) -> None:
    assert sample("sea", "--seeds", "5,0-1", "-o", name) == 0
    assert sample("--from", name, "--seed", "1", "-o", f"one{Path(name).suffix}") == 0
    assert sample("sea", "--seed", "1", "-o", f"same{Path(name).suffix}") == 0
    made_by = read_metadata(here / name)
    assert (made_by["seeds"], len(made_by["motion_used"])) == ("5,0-1", 3)
    if name.endswith(".safetensors"):
        with safe_open(here / name, "np") as grid, safe_open(here / "one.safetensors", "np") as one:
            frames, tile, labels = grid.get_tensor("frames"), one.get_tensor("frames"), False
            assert np.array_equal(grid.get_tensor("latents")[2], one.get_tensor("latents")[0])
    else:
        frames, tile = read_video(here / name)[0], read_video(here / f"one{Path(name).suffix}")[0]
        labels = True
        assert np.array_equal(tile, read_video(here / f"same{Path(name).suffix}")[0])
    rows, across = tile_at(2, 3, 32, 32, labels=labels)
    assert np.array_equal(frames[:, rows, across], tile)


def test_grids_of_several_prompts(here: Path) -> None:
    (here / "p.txt").write_text("sea\nnight\n")
    assert sample("--prompts", "p.txt", "--seeds", "0-1", "-o", "out.png") == 0
    frames = [read_video(here / f"out-00{n}.png")[0] for n in (1, 2)]
    assert frames[0].shape == frames[1].shape == (3, 44, 66, 3)
    assert not np.array_equal(*frames)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0-70", "sea"], "--seeds 0-70: more than 64"),
        (["--seeds", "0-3", "--seed", "2", "sea"], "--seed 2 and --seeds 0-3: leave one of them out"),
        (["--seeds", "0-3", "--latents", "n.safetensors", "sea"], "the noise in --latents is the same for all"),
        (["--prompts", "p.txt", "sea"], "--prompts p.txt and PROMPT sea: leave one of them out"),
        (["--prompts", "none.txt"], "--prompts none.txt does not exist"),
        (["   "], "PROMPT is empty: say what to show"),
        ([""], "PROMPT is empty"),
        (["--lora", "none.safetensors", "sea"], "--lora none.safetensors does not exist"),
    ],
)
def test_wrong_lists_end_with_2(here: Path, capfd: Output, arguments: list[str], words: str) -> None:
    (here / "p.txt").write_text("sea\n")
    assert sample(*arguments, "-o", "out.gif") == 2
    assert words in capfd.readouterr().err
    assert not list(here.glob("out*"))


def test_a_prompt_that_is_too_long_is_told(here: Path, capfd: Output) -> None:
    words = " ".join(["cloud"] * 80)
    assert sample("sea", "--negative", words, "--guidance", "2", "-o", "a.gif") == 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "tokens" in line]
    assert line.startswith('"cloud cloud cloud cloud cloud ..." has ')
    assert line.endswith(', "cloud", nothing is seen')


def test_a_lora_changes_the_video_and_weight_0_does_not(here: Path, capfd: Output) -> None:
    from safetensors.torch import save_file

    key = "lora_unet_conv_out"
    state = {f"{key}.lora_down.weight": torch.ones(2, 32, 3, 3), f"{key}.lora_up.weight": torch.ones(4, 2, 1, 1)}
    save_file(state, here / "s.safetensors")
    for name, lora in (("a.png", []), ("b.png", ["--lora", "s.safetensors:0"]), ("c.png", ["--lora", "s.safetensors"])):
        assert sample("sea", *lora, "-o", name) == 0
    assert "LoRA s.safetensors, weight 1: 1 layers" in capfd.readouterr().err
    a, b, c = (read_video(here / f"{name}.png")[0] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    made_by = read_metadata(here / "c.png")
    assert made_by["lora"] == ["s.safetensors"]
    assert len(made_by["inputs"]["s.safetensors"]) == 64
    assert made_by["base_hash"] == read_metadata(here / "a.png")["base_hash"]
    assert json.dumps(made_by)


def test_settings_that_an_older_version_did_not_know_are_at_their_defaults(tmp_path: Path) -> None:
    from msdv.data.video import write_video
    from msdv.sampling.shots import is_finished

    made_by = {"tool": "msdv 0.1", "prompt": "sea", "model_hash": "a", "chunk_frames": 2}
    write_video(tmp_path / "a.gif", [np.zeros((16, 16, 3), np.uint8)], fps=9, metadata=made_by)
    now = made_by | {"tool": "msdv 9", "chunk_frames": 0, "lora": [], "loop": False}
    assert is_finished(tmp_path / "a.gif", now, False)
    assert not is_finished(tmp_path / "b.gif", now, False)
    for change, words in (
        ({"loop": True}, "made with another --loop"),
        ({"prompt": "land"}, "made with PROMPT sea"),
        ({"model_hash": "b"}, "made with other temporal layers"),
    ):
        assert not is_finished(tmp_path / "a.gif", now | change, True)
        with pytest.raises(UsageError, match=words):
            is_finished(tmp_path / "a.gif", now | change, False)
