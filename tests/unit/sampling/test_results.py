"""What `msdv sample` leaves on the disk, and what it does not."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from msdv.cli import run as cli
from msdv.config import SampleConfig
from msdv.data.video import read_metadata, read_video
from msdv.errors import UsageError
from msdv.model.base import Base
from msdv.sample import SampleReport, sample


def settings(run: Path, out: Path, **changes: object) -> SampleConfig:
    values = {"prompt": "sea", "out": out, "model": str(run), "frames": 5, "steps": 2, "device": "cpu", **changes}
    return SampleConfig.model_validate(values)


def test_numbers_are_those_of_the_pictures(flow_run: Path, tmp_path: Path) -> None:
    sample(settings(flow_run, tmp_path / "a.safetensors", seed=4))
    sample(settings(flow_run, tmp_path / "a", seed=4))
    found = load_file(tmp_path / "a.safetensors")
    assert found["latents"].shape == (1, 4, 5, 4, 4)
    assert found["frames"].dtype == np.float32
    assert np.array_equal((found["frames"] * 255).round(), read_video(tmp_path / "a")[0])
    assert read_metadata(tmp_path / "a.safetensors")["seed"] == 4
    assert (tmp_path / "a.safetensors.toml").read_text().startswith("[sample]\n")


def test_frames_are_decoded_while_they_are_written(
    flow_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    passes = Base.decode_passes

    def watched(self: Base, latents: object) -> object:
        for part in passes(self, latents):  # type: ignore[arg-type]
            order.append("decoded")
            for frame in part:
                yield frame[None]
                order.append("taken")

    monkeypatch.setattr(Base, "decode_passes", watched)
    sample(settings(flow_run, tmp_path / "a", frames=20))
    assert order == (["decoded"] + ["taken"] * 8) * 2 + ["decoded"] + ["taken"] * 4


@pytest.mark.parametrize("name", ["a.gif", "a.mp4", "a", "a.safetensors"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_half_written_is_left(
    flow_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    error: BaseException,
) -> None:
    decode, calls = Base.decode, []

    def fails(self: Base, latents: object) -> object:
        calls.append(1)
        if len(calls) == 5:  # four of which may be the preview's
            raise error
        return decode(self, latents)  # type: ignore[arg-type]

    monkeypatch.setattr(Base, "decode", fails)
    out = tmp_path / name
    arguments = ["sample", "sea", "-o", out, "--model", flow_run, "--frames", 60, "--steps", 1, "--preview"]
    code = cli([str(argument) for argument in arguments])
    message = capfd.readouterr().err
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert ("interrupted: nothing was written" if code == 130 else "the disk is full: free some space") in message
    assert list(tmp_path.iterdir()) == []


def test_a_preview_that_a_killed_process_left_is_replaced(flow_run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gif.preview.png").write_text("left over")
    sample(settings(flow_run, tmp_path / "a.gif", preview=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gif", "a.gif.toml"]


def test_an_interruption_after_the_file_was_written_says_so(
    flow_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("msdv.sampling.sampler.write_beside", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted: .*a.gif was written"):
        sample(settings(flow_run, tmp_path / "a.gif"))


def test_what_is_made_is_counted(tmp_path: Path) -> None:
    out = tmp_path / "a.gif"
    out.touch()
    assert SampleReport([out], 1, 1.0).lines()[0].startswith("1 frame in 1 s: ")
    assert SampleReport([out], 3, 1.0, before=7).lines()[0].startswith("10 frames, 3 of them new, in 1 s: ")


def test_a_preview_changes_nothing(flow_run: Path, tmp_path: Path) -> None:
    for name, preview in (("a", False), ("b", True)):
        sample(settings(flow_run, tmp_path / name, preview=preview))
    assert np.array_equal(read_video(tmp_path / "a")[0], read_video(tmp_path / "b")[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_cache_is_near_and_not_the_same(flow_run: Path, tmp_path: Path) -> None:
    for name, cache in (("exact", 1), ("near", 2)):
        sample(settings(flow_run, tmp_path / name, cache=cache, steps=6))
    exact, near = (read_video(tmp_path / name)[0].astype(int) for name in ("exact", "near"))
    assert 0 < np.abs(exact - near).mean() < 20
    for changes in ({"window": 3}, {"loop": True}):
        with pytest.raises(UsageError, match=f"--cache 2: --{next(iter(changes))} sees other frames together"):
            sample(settings(flow_run, tmp_path / "no", cache=2, **changes))


def test_a_large_gif_says_what_makes_it_smaller(tmp_path: Path) -> None:
    for name, size, lines in (("a.gif", 16_000_000, 2), ("b.gif", 1_000, 1), ("c.png", 16_000_000, 1)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        said = SampleReport([tmp_path / name], 9, 1.0, 0).lines()
        assert len(said) == lines
        assert f"({size / 1e6:.1f} MB)" in said[0]
        if lines == 2:
            assert "an .mp4 or .webp would take a small part of it; --dither none" in said[1]


@pytest.mark.parametrize("name", ["a.avi", "b.jpeg"])
def test_a_suffix_that_is_none_is_refused_before_anything_heavy(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli(["sample", "sea", "-o", str(tmp_path / name), "--model", "nowhere"]) == 2
    assert f"can't be written as {Path(name).suffix}: choose .gif, .mp4" in capfd.readouterr().err
