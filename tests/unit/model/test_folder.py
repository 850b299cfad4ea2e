import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from msdv.errors import MsdvError
from msdv.model.base import load_base
from msdv.model.folder import choose_weights, read_folder
from tests.tiny import save_folder, tiny_pipeline

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[2] / "golden" / "2022"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_folder(tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not ...}))


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
@pytest.mark.parametrize("second", [False, True])
def test_every_tensor_arrives(tmp_path: Path, weights: str, second: bool) -> None:
    pipeline = tiny_pipeline(sd2=second)
    base = load_base(str(save_folder(tmp_path, pipeline, weights=weights)), device=CPU, dtype=torch.float32)
    assert base.prediction_type == ("v_prediction" if second else "epsilon")
    for ours, theirs in (
        (base.unet, pipeline.unet),
        (base.vae, pipeline.vae),
        (base.text_encoder, pipeline.text_encoder),
    ):
        assert ours is not None
        state = ours.state_dict()
        assert state.keys() == theirs.state_dict().keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in theirs.state_dict().items())
    tokens = torch.randint(0, 520, (1, 77))
    with torch.no_grad():
        assert torch.equal(base.text_encoder(tokens)[0], pipeline.text_encoder(tokens)[0])


@pytest.mark.parametrize(
    ("names", "half", "expected"),
    [
        (["W.safetensors", "W.fp16.safetensors", "W.bin"], False, "W.safetensors"),
        (["W.safetensors", "W.fp16.safetensors", "W.bin"], True, "W.fp16.safetensors"),
        (["W.fp16.safetensors", "W.bin"], False, "W.fp16.safetensors"),
        (["W.bin", "W.fp16.bin"], True, "W.fp16.bin"),
        (["W.safetensors.index.json", "W-00001-of-00002.safetensors"], True, "W.safetensors.index.json"),
        (["W.non_ema.safetensors", "config.json"], False, None),
    ],
)
def test_which_weights_are_read(names: list[str], half: bool, expected: str | None) -> None:
    names = [name.replace("W", "diffusion_pytorch_model") for name in names]
    chosen = choose_weights(names, "unet", prefer_half=half)
    assert chosen == (expected and expected.replace("W", "diffusion_pytorch_model"))


def test_half_precision_reads_the_half_precision_files(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, tiny_pipeline(seed=1))
    save_folder(tmp_path, tiny_pipeline(seed=2), variant="fp16")
    full, half = (load_base(str(folder), device=CPU, dtype=d, parts=["unet"]) for d in (torch.float32, torch.bfloat16))
    assert half.unet is not None and half.unet.dtype == torch.bfloat16
    assert full.unet_hash != half.unet_hash


def test_weights_in_several_files(folder: Path) -> None:
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = load_base(str(folder), device=CPU, dtype=torch.float32, parts=["unet"]).unet_hash
    tensors = load_file(whole)
    names = sorted(tensors)
    shards = {"a-1-of-2.safetensors": names[::2], "a-2-of-2.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, whole.with_name(shard))
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    whole.with_name(whole.name + ".index.json").write_text(json.dumps(index))
    whole.unlink()
    assert load_base(str(folder), device=CPU, dtype=torch.float32, parts=["unet"]).unet_hash == before
    whole.with_name("a-1-of-2.safetensors").unlink()
    with pytest.raises(MsdvError, match=r"a-1-of-2\.safetensors is missing"):
        load_base(str(folder), device=CPU, dtype=torch.float32, parts=["unet"])


def test_autoencoders_with_old_attention_names(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    before = load_file(path)
    old = {}
    for key, tensor in before.items():
        new = key
        for today, former in names.items():
            new = new.replace(today, former)
        old[new] = tensor
    assert old.keys() != before.keys()
    save_file(old, path)
    vae = load_base(str(folder), device=CPU, dtype=torch.float32, parts=["vae"]).vae
    assert vae is not None
    assert all(torch.equal(tensor, before[key]) for key, tensor in vae.state_dict().items())


def test_what_comes_with_a_folder(folder: Path) -> None:
    assert read_folder(folder).temporal is None
    (folder / "temporal.safetensors").write_bytes(b"x")
    (folder / "sampling.json").write_text('{"scheduler": "ddim", "steps": 15, "guidance": 4.0}')
    parts = read_folder(folder)
    assert parts.temporal == folder / "temporal.safetensors"
    assert (parts.sampling.scheduler, parts.sampling.steps, parts.sampling.guidance) == ("ddim", 15, 4.0)
    assert parts.sampling.steady == 0
    (folder / "sampling.json").write_text('{"scheduler": "ddim", "steps": 15, "guidance": 4.0, "steady": 1000}')
    with pytest.raises(MsdvError, match="says steady 1000: take another copy, or a number from 0 to 32"):
        read_folder(folder)
    (folder / "sampling.json").write_text('{"scheduler": "magic", "steps": 15, "guidance": 4.0}')
    with pytest.raises(MsdvError, match="magic"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["text", "inpaint"])
def test_the_2022_layout(name: str) -> None:
    path = GOLDEN / name / "pipeline"
    base = load_base(str(path), device=CPU, dtype=torch.float32)
    state = torch.load(path / "unet" / "diffusion_pytorch_model.bin", weights_only=True)
    assert base.unet is not None and isinstance(base.temporal, dict)
    assert (base.group_norm, base.in_channels) == ("joint", 4 if name == "text" else 9)
    assert (base.sampling.scheduler, base.sampling.steps, base.sampling.guidance) == ("ddim", 50, 12.0)
    spatial = {key.replace(".spatial_conv.", "."): t for key, t in state.items() if key not in base.temporal}
    assert len(spatial) + len(base.temporal) == len(state)
    assert all(".temporal_conv." in k or "_temporal." in k for k in base.temporal)
    assert all(torch.equal(tensor, spatial[key]) for key, tensor in base.unet.state_dict().items())
    assert not any("temporal" in key for key in base.unet.state_dict())


def test_2022_block_names_are_translated(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "text" / "pipeline", tmp_path / "model")
    config = tmp_path / "model" / "unet" / "config.json"
    edit(
        config,
        down_block_types=["CrossAttnDownBlockPseudo3D", "DownBlockPseudo3D"],
        mid_block_type="UNetMidBlockPseudo3D",
    )
    assert load_base(str(tmp_path / "model"), device=CPU, dtype=torch.float32, parts=["unet"]).unet is not None


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def truncate(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def configure(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, **changes)


UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("model_index.json"), "no model_index.json"),
        (remove("unet"), r"unet is missing"),
        (remove("vae/config.json"), r"vae.config.json is missing"),
        (remove(UNET), r"unet has no weights"),
        (remove("tokenizer/merges.txt"), "tokenizer lacks"),
        (remove("scheduler"), r"scheduler_config.json is missing"),
        (write("unet/config.json", b"{"), r"unet.config.json is damaged"),
        (write("tokenizer/vocab.json", b"{"), "tokenizer is damaged"),
        (truncate(UNET), r"diffusion_pytorch_model.safetensors is incomplete or damaged"),
        (truncate("text_encoder/model.safetensors"), r"model.safetensors is incomplete or damaged"),
        (configure("unet/config.json", block_out_channels=[32, 128]), "its configuration wants"),
        (configure("unet/config.json", layers_per_block=2), "lacks .* tensors"),
        (configure("unet/config.json", down_block_types=["Nonsense", "DownBlock2D"]), "can't be built"),
        (configure("unet/config.json", norm_num_groups=7), "can't be built"),
        (configure("unet/config.json", cross_attention_dim="wide"), "can't be built|its configuration wants"),
        (configure("unet/config.json", in_channels=8), "InstructPix2Pix"),
        (configure("unet/config.json", addition_embed_type="text_time"), "this is SDXL"),
        (configure("unet/config.json", _class_name="UNetMotionModel"), "UNetMotionModel"),
        (configure("vae/config.json", _class_name="AutoencoderTiny"), "AutoencoderTiny"),
        (configure("vae/config.json", latent_channels=16), "16 latent channels"),
        (configure("text_encoder/config.json", model_type="t5"), "t5"),
        (configure("text_encoder/config.json", hidden_size=48), "wants|can't be built"),
        (configure("model_index.json", _class_name="StableDiffusionXLPipeline"), "this is SDXL"),
        (configure("model_index.json", _class_name="StableDiffusion3Pipeline"), "this is Stable Diffusion 3"),
        (configure("model_index.json", _class_name="FluxPipeline"), "this is Flux"),
        (configure("model_index.json", _class_name="New", transformer=["diffusers", "T"]), "this is a New"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(folder: Path, change: Callable[[Path], None], message: str) -> None:
    change(folder)
    with pytest.raises(MsdvError, match=message) as caught:
        load_base(str(folder), device=CPU, dtype=torch.float32)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_parts_of_two_models_are_refused(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "a")
    edit(folder / "unet" / "config.json", cross_attention_dim=48)
    tensors = load_file(folder / UNET)
    wide = {k: torch.zeros(t.shape[0], 48) if "attn2.to_k" in k or "attn2.to_v" in k else t for k, t in tensors.items()}
    save_file(wide, folder / UNET)
    with pytest.raises(MsdvError, match="embeddings 32 wide, the UNet takes 48"):
        load_base(str(folder), device=CPU, dtype=torch.float32)
    other = save_folder(tmp_path / "b", tiny_pipeline(clip_vocabulary=True))
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(other / "tokenizer", folder / "tokenizer")
    with pytest.raises(MsdvError, match="520 tokens, its tokenizer 49408"):
        load_base(str(folder), device=CPU, dtype=torch.float32, parts=["text_encoder"])


def test_folders_of_something_else_say_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(MsdvError, match=r"give the file itself: .*model\.safetensors"):
        read_folder(tmp_path / "one")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(MsdvError, match="--model"):
        read_folder(tmp_path / "run")
