"""What was exported is what other programs load: by diffusers itself, and by the rules that the others go by."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, StableDiffusionPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import MotionAdapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from msdv.card import Card
from msdv.config import ExportConfig, SampleConfig, TrainConfig
from msdv.errors import MsdvError, UsageError
from msdv.export import export
from msdv.foreign import _PARTS, check_modules, from_animatediff, read_motion_file, to_animatediff, version_of
from msdv.model.base import load_base
from msdv.model.inflate import inflate
from msdv.model.temporal import build_video_unet
from msdv.planning import plan_training
from msdv.sample import sample
from msdv.train import train
from msdv.weights import LINEAR, load_temporal, read_metadata
from tests.runs import settings

REFERENCE = Path(__file__).parents[1] / "golden" / "2022" / "text" / "pipeline"


@pytest.fixture(scope="module")
def exported(motion_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same motion modules in every format."""
    folder = tmp_path_factory.mktemp("exported")
    for to, name in (("animatediff", "mm.safetensors"), ("motion-adapter", "adapter"), ("pipeline", "pipeline")):
        export(ExportConfig(source=str(motion_run), out=folder / name, to=to))  # type: ignore[arg-type]
    return folder


def sampled(folder: Path, model: Path, base: Path, noise: Path) -> Tensor:
    """Frames (4, 32, 32, 3) from 0 to 1 by `msdv sample`."""
    values = {"prompt": "sea", "negative": "land", "out": folder / f"{model.stem}.safetensors", "model": str(model)}
    values |= {"base": str(base), "frames": 4, "latents": noise, "scheduler": "ddim", "steps": 3, "guidance": 5.0}
    sample(SampleConfig.model_validate({**values, "device": "cpu"}))
    return load_file(values["out"])["frames"]


@torch.no_grad()
def test_diffusers_makes_the_same_frames(exported: Path, motion_run: Path, tiny_base: Path, tmp_path: Path) -> None:
    noise = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    save_file({"latents": noise}, tmp_path / "noise.safetensors")
    ours = sampled(tmp_path, motion_run, tiny_base, tmp_path / "noise.safetensors")
    still = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True, safety_checker=None)
    adapter = MotionAdapter.from_pretrained(exported / "adapter").float()
    parts = {name: part for name, part in still.components.items() if name in ("vae", "unet", "tokenizer")}
    peers = [
        AnimateDiffPipeline(
            **parts, text_encoder=still.text_encoder, scheduler=still.scheduler, motion_adapter=adapter
        ),
        AnimateDiffPipeline.from_pretrained(exported / "pipeline", local_files_only=True).to(torch.float32),
    ]
    for peer in peers:
        peer.set_progress_bar_config(disable=True)
        peer.scheduler = DDIMScheduler.from_config(peer.scheduler.config)
        asked: dict[str, Any] = {
            "num_frames": 4,
            "height": 32,
            "width": 32,
            "num_inference_steps": 3,
            "output_type": "pt",
        }
        frames = peer("sea", negative_prompt="land", guidance_scale=5.0, latents=noise.clone(), **asked).frames[0]
        torch.testing.assert_close(frames.permute(0, 2, 3, 1), ours, atol=1e-4, rtol=0)
    for name in ("mm.safetensors", "adapter", "pipeline"):
        base = tiny_base if name != "pipeline" else exported / name
        again = sampled(tmp_path, exported / name, base, tmp_path / "noise.safetensors")
        torch.testing.assert_close(again, ours, atol=1e-6, rtol=0)


def test_the_documented_call_makes_frames(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    """With an image model that float16 holds, as those that are published: its parts are written in float16."""
    still = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True, safety_checker=None)
    for part in (still.unet, still.vae, still.text_encoder):
        part.half()
    still.save_pretrained(tmp_path / "half")
    run = train(
        settings(tmp_path / "half", sky_frames, tmp_path / "run", steps=1, arch="motion-module", init="none")
    ).run
    export(ExportConfig(source=str(run.folder), out=tmp_path / "pipeline"))
    written = load_file(tmp_path / "pipeline" / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    pipeline = AnimateDiffPipeline.from_pretrained(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline("clouds timelapse", num_frames=4, num_inference_steps=2).frames[0]
    assert len(frames) == 4


def test_exporting_again_gives_the_same_bytes(motion_run: Path, exported: Path, tmp_path: Path) -> None:
    for number in range(3):
        for to, name in (("animatediff", f"{number}.safetensors"), ("motion-adapter", f"{number}")):
            export(ExportConfig(source=str(motion_run), out=tmp_path / name, to=to))  # type: ignore[arg-type]
        assert (tmp_path / f"{number}.safetensors").read_bytes() == (exported / "mm.safetensors").read_bytes()
        weights = "diffusion_pytorch_model.safetensors"
        assert (tmp_path / str(number) / weights).read_bytes() == (exported / "adapter" / weights).read_bytes()


def without(key: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: t for k, t in state.items() if k != key}


_OTHERS = "stable-diffusion-v1-5/stable-diffusion-v1-5"
FIRST = "down_blocks.0.motion_modules.0.temporal_transformer."


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("incomplete", rf"has no {FIRST}norm\.weight: the motion modules are incomplete"),
        ("renamed", rf"has no {FIRST}norm\.weight: the motion modules are incomplete or of another kind"),
        ("no blocks", r"has no down_blocks\.1\.motion_modules\.0\.temporal_transformer\.norm\.weight"),
        ("others", r"has up_blocks\.0\.motion_modules\.0\..*\.extra, which msdv's motion modules don't have"),
        ("shape", rf"{FIRST}proj_in\.weight is \(32, 32, 1, 1\), not \(32, 32\)"),
        ("outside", r"has encoder\.motion_modules\.0\.x, which is none of AnimateDiff's motion modules"),
    ],
)
@pytest.mark.parametrize(
    ("to", "name"),
    [("motion-adapter", "out"), ("animatediff", "out.safetensors"), ("msdv", "out.safetensors"), ("pipeline", "out")],
)
def test_modules_that_are_incomplete_or_of_another_kind(
    exported: Path, tiny_base: Path, tmp_path: Path, kind: str, words: str, to: str, name: str
) -> None:
    state = load_file(exported / "mm.safetensors")
    changed = {
        "incomplete": without(f"{FIRST}norm.weight", state),
        "renamed": {k.replace(".temporal_transformer.", ".tt."): t for k, t in state.items()},
        "no blocks": {k: t for k, t in state.items() if not k.startswith("down_blocks.1.")},
        "others": {**state, "up_blocks.0.motion_modules.0.temporal_transformer.extra": torch.zeros(1)},
        "shape": {**state, f"{FIRST}proj_in.weight": torch.zeros(32, 32, 1, 1)},
        "outside": {**state, "encoder.motion_modules.0.x": torch.zeros(1)},
    }
    source = tmp_path / "theirs.safetensors"
    save_file(changed[kind], source)
    base = str(tiny_base) if to == "pipeline" else None
    with pytest.raises(MsdvError, match=rf"theirs\.safetensors:? {words}"):
        export(ExportConfig(source=str(source), out=tmp_path / name, to=to, base=base))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == [source]


def test_modules_of_another_size_are_not_put_beside_an_image_model(tiny_base: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            {**UNet2DConditionModel.load_config(tiny_base / "unet"), "block_out_channels": (64, 64)}
        )
        shapes = inflate(unet, arch="motion-module").temporal_parameters()
    source = tmp_path / "theirs.safetensors"
    save_file(to_animatediff({key: torch.zeros(p.shape) for key, p in shapes.items()}), source)
    with pytest.raises(MsdvError, match="these temporal weights are of another image model"):
        export(ExportConfig(source=str(source), out=tmp_path / "out", to="pipeline", base=str(tiny_base)))
    assert list(tmp_path.iterdir()) == [source]


def test_modules_of_stable_diffusion_xl(tmp_path: Path) -> None:
    shapes = {
        f"{kind}.{block}.motion_modules.{module}.{part}": tuple(f * channels for f in factors)
        for kind, sizes, count in (("down_blocks", (320, 640, 1280), 2), ("up_blocks", (1280, 640, 320), 3))
        for block, channels in enumerate(sizes)
        for module in range(count)
        for part, factors in _PARTS.items()
    }
    check_modules(shapes, tmp_path, ours=True)
    with pytest.raises(MsdvError, match=r"for Stable Diffusion XL: take those for Stable Diffusion 1\.5"):
        check_modules(shapes, tmp_path, ours=False)


def test_the_animatediff_file_goes_through_diffusers_reader(exported: Path, motion_run: Path) -> None:
    state, _ = load_temporal(motion_run / "temporal.safetensors")
    file = exported / "mm.safetensors"
    adapter = MotionAdapter.from_single_file(file, config=str(exported / "adapter"), local_files_only=True)
    loaded = dict(adapter.named_parameters())
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key].half(), value) for key, value in state.items())
    written = load_file(file)
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    encodings = {key: tensor for key, tensor in written.items() if key.endswith("pos_encoder.pe")}
    assert {tuple(tensor.shape)[:2] for tensor in encodings.values()} == {(1, 32)}
    own = dict(adapter.named_buffers())["down_blocks.0.motion_modules.0.transformer_blocks.0.pos_embed.pe"]
    key = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
    assert torch.equal(encodings[key], own.half())


def comfyui_version(state: dict[str, Tensor]) -> str:
    """As ComfyUI-AnimateDiff-Evolved tells, for what it takes for a module of Stable Diffusion 1.5."""
    blocks = {int(key.split(".")[1]) for key in state if "down_blocks" in key}
    assert max(blocks) == 3
    assert all("temporal" in key for key in state)
    if any(key.startswith("mid_block.") for key in state):
        return "v2"
    encoding = next(tensor for key, tensor in state.items() if key.endswith("pos_encoder.pe"))
    return "v3" if encoding.shape[1] == 32 else "v1"


def a1111_version(state: dict[str, Tensor]) -> str:
    """As sd-webui-animatediff tells."""
    if any("mid_block" in key for key in state):
        return "v2"
    assert any("down_blocks.3" in key for key in state)
    first = next(tensor for key, tensor in state.items() if "pe" in key)
    return "v3" if 32 in first.shape else "v1"


@pytest.mark.parametrize(("mid_block", "count", "version"), [(False, 560, "v3"), (True, 588, "v2")])
def test_at_stable_diffusion_size_files_are_those_published(mid_block: bool, count: int, version: str) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        model = inflate(unet, arch="motion-module", mid_block=mid_block)
    # On the meta device nothing can be converted: empty tensors of the same shapes.
    state = {key: torch.empty(1).expand(p.shape) for key, p in model.temporal_parameters().items()}
    state = {key: tensor[:1] if tensor.ndim == 1 else tensor[:1, :] for key, tensor in state.items()}
    written = to_animatediff(state)
    assert len(written) == count
    assert {tuple(t.shape) for k, t in written.items() if k.endswith(".pe")} == {(1, 32, c) for c in (320, 640, 1280)}
    assert comfyui_version(written) == a1111_version(written) == version_of({k: t.shape for k, t in written.items()})
    assert version_of({k: t.shape for k, t in written.items()}) == version
    assert all(".motion_modules." in key and not key.startswith("module.") for key in written)
    assert from_animatediff(written).keys() == state.keys()


@pytest.mark.parametrize("kind", ["v1.ckpt", "v2.ckpt", "v3.safetensors", "adapter"])
def test_trainings_start_from_what_others_published(
    kind: str, tiny_base: Path, sky_frames: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = load_base(str(tiny_base), device=torch.device("cpu"), dtype=torch.float32, parts=("unet",))
    model = inflate(base.unet, arch="motion-module", mid_block=kind == "v2.ckpt")
    state = {key: torch.randn(p.shape).half() * 0.05 for key, p in model.temporal_parameters().items()}
    path = tmp_path / kind
    if kind == "adapter":
        adapter = MotionAdapter(
            block_out_channels=(32, 64), motion_layers_per_block=1, motion_norm_num_groups=8, use_motion_mid_block=False
        )
        adapter.load_state_dict({**adapter.state_dict(), **state})
        adapter.save_pretrained(path)
    else:
        theirs = to_animatediff(state)
        if kind == "v1.ckpt":
            theirs = {k: t[:, :24] if k.endswith(".pe") else t for k, t in theirs.items()}
            torch.save({"state_dict": {f"module.{k}": t.clone() for k, t in theirs.items()}, "epoch": 3}, path)
        elif kind == "v2.ckpt":
            torch.save(theirs, path)
        else:
            save_file(theirs, path)
    found = read_motion_file(path)
    assert found is not None
    assert kind.split(".")[0] in found.kind
    config = {"init": str(path), "betas": "base" if kind == "adapter" else None, "steps": 1, "lr": 1e-12, "warmup": 0}
    run = train(settings(tiny_base, sky_frames, tmp_path / "run", **config)).run
    learned, metadata = load_temporal(run.weights)
    assert metadata.mid_block == (kind == "v2.ckpt")
    assert all(torch.equal(learned[key], value) for key, value in state.items())
    said = capfd.readouterr().err
    assert (metadata.scheduler["beta_schedule"] == "linear") == (kind != "adapter") == ("schedule: linear" in said)
    sample(
        SampleConfig(prompt="sea", out=tmp_path / "a.gif", model=str(run.folder), frames=2, steps=1, device="cpu"),
    )


def test_published_modules_sample_on_their_own_schedule(exported: Path, motion_run: Path, tmp_path: Path) -> None:
    plain = tmp_path / "published.safetensors"
    save_file(load_file(exported / "mm.safetensors"), plain)
    metadata = read_metadata(plain)
    assert (metadata.arch, metadata.scheduler, metadata.unet_hash) == ("motion-module", LINEAR, "")
    assert metadata.base == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    ours = read_metadata(exported / "mm.safetensors")
    assert ours == read_metadata(motion_run / "temporal.safetensors").model_copy(update={"unet_hash": ""})
    plan = plan_training(TrainConfig(init=str(plain), base="builtin", frames=4, device="cpu"))
    assert plan.settings["arch"] == "motion-module"


def test_layouts_that_go_with_the_other_kind_say_what_works(motion_run: Path, flow_run: Path, tmp_path: Path) -> None:
    for to, name in (("animatediff", "a.safetensors"), ("motion-adapter", "a")):
        with pytest.raises(UsageError, match=rf"--to {to}: .* are pseudo3d, .* --to msdv, pipeline or 2022 work"):
            export(ExportConfig(source=str(flow_run), out=tmp_path / name, to=to))  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match=r"--to 2022: .* motion modules, .* --to animatediff, motion-adapter, pipeline"
    ):
        export(ExportConfig(source=str(motion_run), out=tmp_path / "a", to="2022"))
    with pytest.raises(UsageError, match=r"--to 2022: .* trained with those of each frame: .* --group-norm joint"):
        export(ExportConfig(source=str(flow_run), out=tmp_path / "a", to="2022"))
    with pytest.raises(UsageError, match=r"a: --to animatediff writes one file: .* \.safetensors"):
        export(ExportConfig(source=str(motion_run), out=tmp_path / "a", to="animatediff"))
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_motion_modules(tmp_path: Path, tiny_base: Path) -> None:
    lora = {"down_blocks.0.motion_modules.0.attn1.processor.to_q_lora.down.weight": torch.zeros(2, 2)}
    save_file(lora, tmp_path / "lora.safetensors")
    with pytest.raises(MsdvError, match=r"is a motion LoRA, .*: give the motion modules themselves"):
        read_metadata(tmp_path / "lora.safetensors")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(MsdvError, match=r"holds no temporal weights of msdv .* and no motion modules"):
        read_metadata(tmp_path / "other.ckpt")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "config.json").write_text(json.dumps({"_class_name": "MotionAdapter", "motion_num_attention_heads": 4}))
    with pytest.raises(MsdvError, match="has 4 attention heads"):
        read_metadata(adapter)
    (adapter / "config.json").write_text(json.dumps({"_class_name": "MotionAdapter"}))
    with pytest.raises(MsdvError, match=r"has no diffusion_pytorch_model\.safetensors: take a complete copy"):
        read_metadata(adapter)


@pytest.fixture(scope="module")
def joint_run(sky_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pseudo-3D layers trained for a step on the image model of 2022, from those in it."""
    out = tmp_path_factory.mktemp("runs") / "joint"
    config = settings(REFERENCE, sky_frames, out, steps=1)
    train(config.model_copy(update={"base": None, "init": str(REFERENCE), "lr": 1e-12}))
    return out


def test_a_whole_model_goes_with_its_own_image_model(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--base builtin: --init .* has its own image model: leave --base out"):
        train(settings(Path("builtin"), sky_frames, tmp_path / "a", init=str(REFERENCE)))
    with pytest.raises(UsageError, match="is an image model without temporal layers: pass it as --base"):
        train(settings(tiny_base, sky_frames, tmp_path / "a", init=str(tiny_base)))


@torch.no_grad()
def test_the_2022_layout_has_the_keys_of_2022(joint_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "2022"
    report = export(ExportConfig(source=str(joint_run), out=out, to="2022"))
    assert f"--base {out}" in report.lines()[-1]
    for part, name in (
        ("unet", "diffusion_pytorch_model.bin"),
        ("vae", "diffusion_pytorch_model.bin"),
        ("text_encoder", "pytorch_model.bin"),
    ):
        theirs, ours = (torch.load(folder / part / name, weights_only=True) for folder in (REFERENCE, out))
        assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in theirs.items()}
    for name in ("unet/config.json", "model_index.json", "scheduler/scheduler_config.json"):
        theirs, ours = (json.loads((folder / name).read_text()) for folder in (REFERENCE, out))
        assert ours.keys() >= theirs.keys()
        assert ours["_class_name"] == theirs["_class_name"]
    base = load_base(str(out), device=torch.device("cpu"), dtype=torch.float32)
    model, _ = build_video_unet(base, base.temporal)
    model.unet.load_state_dict(torch.load(out / "unet" / "diffusion_pytorch_model.bin", weights_only=True), strict=True)
    learned, metadata = load_temporal(joint_run / "temporal.safetensors")
    assert metadata.group_norm == "joint"
    start = torch.load(REFERENCE / "unet" / "diffusion_pytorch_model.bin", weights_only=True)
    assert all(torch.allclose(start[key], value.float(), atol=1e-3) for key, value in learned.items())
    assert all(torch.equal(p, learned[key].float()) for key, p in model.temporal_parameters().items())


def test_headers_and_cards_describe_the_result(motion_run: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("temporal.safetensors", "config.toml"):
        (tmp_path / "run" / name).write_bytes((motion_run / name).read_bytes())
    (tmp_path / "run" / "samples").mkdir()
    (tmp_path / "run" / "samples" / "step-000010.gif").write_bytes(b"GIF89a")
    told = {"title": "Clouds: slow", "about": "Timelapses of mine", "license": "creativeml-openrail-m"}
    config = {"source": str(tmp_path / "run"), "out": tmp_path / "adapter", "to": "motion-adapter", **told}
    export(ExportConfig.model_validate(config))
    card = (tmp_path / "adapter" / "README.md").read_text()
    front, text = card.split("---\n")[1:3]
    import yaml

    matter = yaml.safe_load(front)
    assert matter["license"] == "creativeml-openrail-m"
    assert (matter["library_name"], matter["pipeline_tag"]) == ("diffusers", "text-to-video")
    for words in ("# Clouds: slow", "Timelapses of mine", "![sample](sample.gif)", "| optimizer steps | 10 |"):
        assert words in text
    assert str(tmp_path) not in card
    assert (tmp_path / "adapter" / "sample.gif").read_bytes() == b"GIF89a"
    with safe_open(tmp_path / "adapter" / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["modelspec.sai_model_spec"] == "1.0.0"
    assert header["modelspec.title"] == "Clouds: slow"
    assert header["modelspec.resolution"] == "32x32"
    assert header["msdv.frames"] == "4"
    assert not (exported / "adapter" / "sample.gif").exists()


@pytest.mark.parametrize(
    ("width", "family"), [(768, "stable-diffusion-v1/"), (1024, "stable-diffusion-v2/"), (32, None)]
)
def test_a_card_names_the_image_model_that_it_is_for(
    motion_run: Path, tmp_path: Path, width: int, family: str | None
) -> None:
    weights = motion_run / "temporal.safetensors"
    metadata = read_metadata(weights)

    def card(
        to: str, base: str = "builtin", channels: tuple[int, ...] = (320, 640, 1280, 1280), inputs: int = 4
    ) -> Card:
        config = ExportConfig.model_validate(
            {"source": str(motion_run), "out": tmp_path / "out", "to": to, "push": "me/c"}
        )
        known = {"block_out_channels": (320, 640, 1280, 1280)} if base == _OTHERS else {}
        unet = {"cross_attention_dim": width, "in_channels": inputs, **known}
        return Card(config, config.to or "msdv", metadata.model_copy(update={"base": base}), weights, unet, channels)

    architecture = card("motion-adapter").header().get("modelspec.architecture")
    assert architecture == (family and f"{family}motion-module")
    fitting = card("motion-adapter").text()
    assert 'MotionAdapter.from_pretrained("me/c")' in fitting
    assert '("stable-diffusion-v1-5/stable-diffusion-v1-5", motion' in fitting
    small = card("motion-adapter", channels=(32, 64)).text()
    assert "AnimateDiffPipeline" not in small
    assert "stable-diffusion-v1-5" not in small
    assert "image model `builtin`" in small
    others = card("motion-adapter", _OTHERS, (32, 64)).text()
    assert "AnimateDiffPipeline" not in others
    assert "base_model" not in others
    assert "image models with blocks of 32, 64 channels" in others
    assert '("owner/small", motion' in card("motion-adapter", "owner/small", (32, 64)).text()
    whole = card("pipeline").text()
    assert "library_name: diffusers" in whole
    assert 'AnimateDiffPipeline.from_pretrained("me/c")' in whole
    inpainting = card("pipeline", inputs=9).text()
    assert "library_name: msdv" in inpainting
    assert "AnimateDiffPipeline" not in inpainting


class FakeHub:
    """What the hub's client is asked to do."""

    error: Exception | None = None

    def __init__(self) -> None:
        FakeHub.asked: dict[str, Any] = {}

    def create_repo(self, repository: str, **settings: Any) -> str:
        if self.error:
            raise self.error
        FakeHub.asked = {"repository": repository, **settings}
        return f"https://hub/{repository}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, **settings: Any) -> None:
        FakeHub.asked |= {"to": repo_id, "files": sorted(p.name for p in Path(folder_path).rglob("*") if p.is_file())}
        FakeHub.asked["card"] = (Path(folder_path) / "README.md").read_text()


def test_results_go_to_the_hub_with_their_card(
    motion_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    config = {"source": str(motion_run), "push": "me/clouds", "private": True}
    report = export(ExportConfig.model_validate({**config, "out": tmp_path / "mm.safetensors", "to": "animatediff"}))
    assert "uploaded: https://hub/me/clouds" in report.lines()
    assert FakeHub.asked["files"] == ["README.md", "mm.safetensors"]
    assert (FakeHub.asked["repository"], FakeHub.asked["to"]) == ("me/clouds", "me/clouds")
    assert (FakeHub.asked["private"], FakeHub.asked["exist_ok"]) == (True, True)
    assert "models/animatediff_models" in FakeHub.asked["card"]
    assert "--model mm.safetensors" in FakeHub.asked["card"]
    export(ExportConfig.model_validate({**config, "out": tmp_path / "adapter", "to": "motion-adapter"}))
    assert FakeHub.asked["files"] == ["README.md", "config.json", "diffusion_pytorch_model.safetensors", "export.toml"]
    assert "--model adapter" in FakeHub.asked["card"]  # whose image model is not on the hub
    again = {**config, "out": tmp_path / "adapter", "to": "motion-adapter", "overwrite": True}
    for status, words in (
        (401, "you are not logged in: run `hf auth login`"),
        (403, "you may not write there"),
        (500, "f"),
    ):
        response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
        FakeHub.error = HfHubHTTPError("failed", response=response)
        with pytest.raises(MsdvError, match=f"--push me/clouds.*{words}"):
            export(ExportConfig.model_validate(again))
    FakeHub.error = None
    assert (tmp_path / "adapter" / "config.json").is_file()
    with pytest.raises(UsageError, match="--private: is for the repository of --push"):
        export(ExportConfig(source=str(motion_run), out=tmp_path / "b.safetensors", private=True))
    with pytest.raises(UsageError, match="--push clouds: is no name on the model hub: give owner/name"):
        export(ExportConfig(source=str(motion_run), out=tmp_path / "b.safetensors", push="clouds"))
