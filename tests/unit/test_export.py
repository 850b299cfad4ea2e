import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from msdv.config import ExportConfig, SampleConfig
from msdv.data.video import read_video
from msdv.errors import MsdvError, UsageError
from msdv.export import export
from msdv.sample import sample


@pytest.fixture
def run(flow_run: Path) -> Path:
    return flow_run


def test_what_was_exported_samples_the_same_frames(run: Path, tmp_path: Path) -> None:
    export(ExportConfig(source=str(run), out=tmp_path / "motion.safetensors"))
    report = export(ExportConfig(source=str(run), out=tmp_path / "pipeline"))
    assert "pipeline" in report.lines()[0]
    frames = []
    for index, model in enumerate((run, tmp_path / "motion.safetensors", tmp_path / "pipeline")):
        out = tmp_path / f"frames-{index}"
        sample(SampleConfig(prompt="sea", out=out, model=str(model), frames=5, steps=2, device="cpu"))
        frames.append(read_video(out)[0])
    assert np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[0], frames[2])


def test_the_file_is_half_precision_with_metadata(run: Path, tmp_path: Path) -> None:
    export(ExportConfig(source=str(run), out=tmp_path / "motion.safetensors"))
    with safe_open(tmp_path / "motion.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "msdv.temporal"
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    assert (tmp_path / "motion.safetensors.toml").is_file()


def test_diffusers_itself_loads_the_pipeline_folder(run: Path, tmp_path: Path) -> None:
    export(ExportConfig(source=str(run), out=tmp_path / "pipeline"))
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    from transformers import CLIPTokenizer

    folder = tmp_path / "pipeline" / "tokenizer"
    assert (folder / "vocab.json").is_file()
    with safe_open(tmp_path / "pipeline" / "text_encoder" / "model.safetensors", framework="pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118
    expected = pipeline.tokenizer("clouds over the sea").input_ids
    (folder / "tokenizer.json").unlink()
    assert CLIPTokenizer.from_pretrained(folder)("clouds over the sea").input_ids == expected
    picture = pipeline("sea", num_inference_steps=1, height=32, width=32, output_type="np").images[0]
    assert picture.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("out", "to", "words"),
    [
        ("a.ckpt", "motion-adapter", "--to motion-adapter writes a folder: choose a name without a suffix"),
        ("a.ckpt", "animatediff", "msdv writes no pickles"),
        ("a.bin", None, "msdv writes no pickles"),
        ("motion.safetensor", None, "don't know how to write .safetensor"),
        ("folder", "msdv", "--to msdv writes one file"),
        ("a.safetensors", "pipeline", "--to pipeline writes a folder"),
    ],
)
def test_formats_and_names_that_do_not_go_together(
    run: Path, tmp_path: Path, out: str, to: str | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        export(ExportConfig(source=str(run), out=tmp_path / out, to=to))  # type: ignore[arg-type]
    assert not (tmp_path / out).exists()


def test_sources_that_cannot_be_used(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist"):
        export(ExportConfig(source="nowhere", out=tmp_path / "a.safetensors"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MsdvError, match=r"has no temporal\.safetensors yet"):
        export(ExportConfig(source=str(tmp_path / "empty"), out=tmp_path / "a.safetensors"))
    (tmp_path / "a.safetensors").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        export(ExportConfig(source=str(run), out=tmp_path / "a.safetensors"))
    assert (tmp_path / "a.safetensors").read_text() == "mine"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("to", ["msdv", "pipeline"])
@pytest.mark.parametrize(
    ("source", "out", "words"),
    [
        ("runs/a", "runs/a", "is or holds"),
        ("runs/a", "runs", "is or holds"),
        ("runs/a", "runs/a/../../runs", "is or holds"),
        ("runs/a/temporal.safetensors", "runs/a", "is or holds"),
        ("runs/a", "runs/b", "is not a folder that msdv export wrote"),
        ("runs/a", "mine", "is not a folder that msdv export wrote"),
        ("runs/a", "exports", "is or holds a run of msdv train"),
        ("runs/a", "file", "is not a folder that msdv export wrote"),
    ],
)
def test_what_no_export_wrote_is_not_replaced(
    run: Path, tmp_path: Path, to: str, source: str, out: str, words: str
) -> None:
    for place in ("runs/a", "runs/b", "exports/c"):
        (tmp_path / place / "checkpoints").mkdir(parents=True)
        for name in ("temporal.safetensors", "config.toml"):
            shutil.copyfile(run / name, tmp_path / place / name)
    (tmp_path / "exports" / "export.toml").write_text("[export]\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(UsageError, match=words if to == "pipeline" else "choose a"):
        export(
            ExportConfig.model_validate(
                {"source": str(tmp_path / source), "out": tmp_path / out, "to": to, "overwrite": True}
            )
        )
    assert content(tmp_path) == before


def test_a_file_does_not_replace_what_it_is_made_from(run: Path, tmp_path: Path) -> None:
    for name in ("temporal.safetensors", "config.toml"):
        shutil.copyfile(run / name, tmp_path / name)
    before = content(tmp_path)
    for source in (tmp_path, tmp_path / "temporal.safetensors"):
        with pytest.raises(UsageError, match=r"is or holds .*, from which it would be made"):
            export(ExportConfig(source=str(source), out=tmp_path / "temporal.safetensors", overwrite=True))
    shutil.copytree(tmp_path, tmp_path / "other")
    with pytest.raises(UsageError, match="is the weights of a run of msdv train"):
        export(ExportConfig(source=str(tmp_path), out=tmp_path / "other" / "temporal.safetensors", overwrite=True))
    shutil.rmtree(tmp_path / "other")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UsageError, match=r"folder\.safetensors is a folder: choose another name"):
        export(ExportConfig(source=str(tmp_path), out=tmp_path / "folder.safetensors", overwrite=True))
    assert content(tmp_path) == before


def test_exports_are_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(ExportConfig(source=str(run), out=tmp_path / "out"))
    (tmp_path / "out" / "README.md").write_text("old")
    export(ExportConfig(source=str(run), out=tmp_path / "out", overwrite=True))
    assert (tmp_path / "out" / "README.md").read_text() != "old"


def test_places_and_files_that_are_no_good(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        UsageError, match=r"a\.safetensors can't be written \(.*file: not a directory\): choose another"
    ):
        export(ExportConfig(source=str(run), out=tmp_path / "file" / "a.safetensors"))
    cut = tmp_path / "cut.safetensors"
    data = (run / "temporal.safetensors").read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(MsdvError, match=r"cut\.safetensors is incomplete or damaged \(.*\): download or copy it again"):
        export(ExportConfig(source=str(cut), out=tmp_path / "a.safetensors"))
