"""LoRA files of every format, merged; and files that can't be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from msdv.errors import MsdvError, UsageError
from msdv.model.base import load_base
from msdv.model.lora import Choice, Lora, merge, parse_lora
from tests.tiny import TinyPipeline, tiny_pipeline

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
RANK = 4


def pair(module: nn.Module, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """down, up."""
    weight = module.weight
    generator = torch.Generator().manual_seed(weight.numel())
    assert isinstance(weight, Tensor)
    down = torch.randn(rank, *weight.shape[1:], generator=generator)
    up = torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=generator)
    return down, up


def layers(network: nn.Module, ends: tuple[str, ...]) -> dict[str, nn.Module]:
    return {name: module for name, module in network.named_modules() if name.endswith(ends)}


def text_name(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


Pairs = dict[str, dict[str, tuple[Tensor, Tensor]]]


def pairs_of(pipeline: TinyPipeline, unet: tuple[str, ...], text: tuple[str, ...]) -> Pairs:
    return {
        "unet": {name: pair(module) for name, module in layers(pipeline.unet, unet).items()},
        "text": {name: pair(module) for name, module in layers(pipeline.text_encoder, text).items()},
    }


def kohya(pairs: Pairs) -> dict[str, Tensor]:
    state = {}
    for part, prefix in (("unet", "lora_unet_"), ("text", "lora_te_")):
        for name, (down, up) in pairs[part].items():
            key = prefix + (name if part == "unet" else text_name(name)).replace(".", "_")
            state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
    return state


def peft(pairs: Pairs) -> dict[str, Tensor]:
    state = {}
    for part, prefix in (("unet", "unet."), ("text", "text_encoder.")):
        for name, (down, up) in pairs[part].items():
            key = prefix + (name if part == "unet" else text_name(name))
            state |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    return state


def attention_processors(pairs: Pairs) -> dict[str, Tensor]:
    """As diffusers wrote them in 2023."""
    state = {}
    for name, (down, up) in pairs["unet"].items():
        block, _, projection = name.rpartition(".to_")
        key = f"unet.{block}.processor.to_{projection.removesuffix('.0')}_lora"
        state |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    for name, (down, up) in pairs["text"].items():
        key = f"text_encoder.{text_name(name)}.lora_linear_layer"
        state |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return state


def expected(pairs: Pairs, pipeline: TinyPipeline, scale: float) -> dict[str, dict[str, Tensor]]:
    """Weights that have changed."""
    found: dict[str, dict[str, Tensor]] = {}
    for part, network in (("unet", pipeline.unet), ("text", pipeline.text_encoder)):
        state = network.state_dict()
        found[part] = {
            f"{name}.weight": state[f"{name}.weight"]
            + scale * (up.flatten(1) @ down.flatten(1)).reshape(state[f"{name}.weight"].shape)
            for name, (down, up) in pairs[part].items()
        }
    return found


def assert_merged(file: Path, pairs: Pairs, scale: float, weight: float) -> list[str]:
    pipeline = tiny_pipeline()
    wanted = expected(pairs, pipeline, scale)
    untouched = tiny_pipeline()
    lora = Lora(Choice(file, weight))
    lines = merge([lora], "tiny", pipeline.unet, pipeline.text_encoder, torch.float32)
    for part, network, before in (
        ("unet", pipeline.unet, untouched.unet),
        ("text", pipeline.text_encoder, untouched.text_encoder),
    ):
        for key, tensor in network.state_dict().items():
            if key in wanted[part]:
                torch.testing.assert_close(tensor, wanted[part][key], rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(tensor, before.state_dict()[key]), key
    return lines


@pytest.mark.parametrize(
    ("write", "scale"), [(kohya, 0.7 * 2 / RANK), (peft, 0.7), (attention_processors, 0.7)], ids=lambda f: str(f)[:20]
)
def test_pairs_of_every_format_are_added(tmp_path: Path, write: Callable[[Pairs], dict], scale: float) -> None:
    pairs = pairs_of(tiny_pipeline(), ATTENTION, ("q_proj", "out_proj"))
    save_file(write(pairs), tmp_path / "a.safetensors")
    lines = assert_merged(tmp_path / "a.safetensors", pairs, scale, 0.7)
    assert lines == [f"LoRA a.safetensors, weight 0.7: {sum(map(len, pairs.values()))} layers"]


def test_convolutions_and_all_that_an_lcm_lora_changes(tmp_path: Path) -> None:
    ends = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut")
    ends += ("downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")
    pairs = pairs_of(tiny_pipeline(), ends, ("nothing",))
    assert len(pairs["unet"]) > 70
    save_file(kohya(pairs), tmp_path / "a.safetensors")
    assert_merged(tmp_path / "a.safetensors", pairs, -1.5 * 2 / RANK, -1.5)


def test_a_convolution_between_two_is_multiplied_in(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    name, conv = "mid_block.resnets.0.conv1", pipeline.unet.get_submodule("mid_block.resnets.0.conv1")
    before = conv.weight.clone()
    down, up, mid = torch.randn(3, 64, 1, 1), torch.randn(64, 3, 1, 1), torch.randn(3, 3, 3, 3)
    key = "lora_unet_" + name.replace(".", "_")
    state = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.lora_mid.weight": mid}
    save_file(state, tmp_path / "a.safetensors")
    merge([Lora(Choice(tmp_path / "a.safetensors", 1.0))], "tiny", pipeline.unet, None, torch.float32)
    image = torch.randn(1, 64, 5, 5)
    through = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(image, down), mid, padding=1), up)
    added = nn.functional.conv2d(image, conv.weight - before, padding=1)
    torch.testing.assert_close(added, through, rtol=1e-4, atol=1e-3)


def test_peft_says_alpha_in_the_header(tmp_path: Path) -> None:
    pairs = pairs_of(tiny_pipeline(), ("attn1.to_q",), ("q_proj",))
    header = {"unet.lora_alpha": 8, "unet.r": RANK, "text_encoder.lora_alpha": 8}
    save_file(peft(pairs), tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(header)})
    assert_merged(tmp_path / "a.safetensors", pairs, 8 / RANK, 1.0)
    header |= {"unet.alpha_pattern": {"attn1.to_q": RANK}, "text_encoder.use_rslora": True}
    header["text_encoder.lora_alpha"] = RANK**0.5
    save_file(peft(pairs), tmp_path / "b.safetensors", metadata={"lora_adapter_metadata": json.dumps(header)})
    assert_merged(tmp_path / "b.safetensors", pairs, 1.0, 1.0)


def test_the_first_convolution_of_an_inpainting_model_takes_what_is_for_four_channels(tmp_path: Path) -> None:
    pairs = pairs_of(tiny_pipeline(), ("conv_in",), ("nothing",))
    save_file(kohya(pairs), tmp_path / "a.safetensors")
    inpainting, before = tiny_pipeline(in_channels=9), tiny_pipeline(in_channels=9)
    merge([Lora(Choice(tmp_path / "a.safetensors", 1.0))], "tiny", inpainting.unet, None, torch.float32)
    changed = inpainting.unet.conv_in.weight - before.unet.conv_in.weight
    assert changed[:, :4].abs().min() > 0
    assert not changed[:, 4:].any()


def test_a_model_with_loras_keeps_its_hash_and_weight_0_changes_nothing(tiny_base: Path, tmp_path: Path) -> None:
    pairs = pairs_of(tiny_pipeline(), ATTENTION, ("q_proj",))
    save_file(kohya(pairs), tmp_path / "a.safetensors")
    torch.save(kohya(pairs), tmp_path / "b.bin")

    def load(*choices: Choice) -> dict[str, Tensor]:
        base = load_base(
            str(tiny_base), device=torch.device("cpu"), dtype=torch.bfloat16, loras=[Lora(c) for c in choices]
        )
        hashes.add(base.unet_hash)
        assert base.unet is not None and base.text_encoder is not None
        assert {p.dtype for p in base.unet.parameters()} == {torch.bfloat16}
        return base.unet.state_dict() | base.text_encoder.state_dict()

    hashes: set[str | None] = set()
    file = tmp_path / "a.safetensors"
    none, zero = load(), load(Choice(file, 0.0))
    assert all(torch.equal(none[key], zero[key]) for key in none)
    whole, halves = load(Choice(file, 1.0)), load(Choice(file, 0.5), Choice(tmp_path / "b.bin", 0.5))
    assert all(torch.equal(whole[key], halves[key]) for key in none)
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(whole[key], none[key])
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"lora_unet_a.hada_w1_a": 1}, "holds LoHa (lora_unet_a.hada_w1_a)"),
        ({"lora_unet_a.lokr_w1": 1}, "holds LoKr"),
        ({"unet.a.lora_magnitude_vector": 1}, "holds DoRA"),
        ({"lora_unet_a.dora_scale": 1}, "holds DoRA"),
        ({"lora_unet_a.diff": 1}, "holds whole differences of weights"),
        ({"lora_unet_a.lora_down.weight": 1}, "has only half of lora_unet_a: download or copy it again"),
        ({"model.diffusion_model.a.weight": 1}, "holds no LoRA but an image model: pass it as --base"),
        ({"a.temporal_conv.weight": 1}, "holds no LoRA but temporal layers: pass it as --model"),
        ({"emb_params": 1}, "holds no LoRA but 1 other tensors (emb_params)"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, state: dict[str, int], words: str) -> None:
    save_file({key: torch.zeros(1) for key in state}, tmp_path / "a.safetensors")
    with pytest.raises(MsdvError) as caught:
        Lora(Choice(tmp_path / "a.safetensors", 1.0))
    assert words in str(caught.value)
    assert str(tmp_path / "a.safetensors") in str(caught.value)


def wide(width: int) -> dict[str, Tensor]:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    return {f"{key}.lora_down.weight": torch.zeros(4, width), f"{key}.lora_up.weight": torch.zeros(64, 4)}


@pytest.mark.parametrize(
    ("state", "metadata", "words"),
    [
        (wide(768), {}, "is for Stable Diffusion 1.x, --base tiny is a model with text embeddings 32 wide"),
        (wide(2048), {}, "is for Stable Diffusion XL"),
        (wide(32) | {}, {"ss_base_model_version": "sdxl_base_v1-0"}, None),  # what fits is taken
        (wide(5), {"modelspec.architecture": "flux-1-dev/lora"}, "is for FLUX"),
        ({"lora_te2_a.lora_down.weight": torch.zeros(1, 1), "lora_te2_a.lora_up.weight": torch.zeros(1, 1)}, {}, "XL"),
        (
            {
                "down_blocks.0.motion.lora_A.weight": torch.zeros(1, 1),
                "down_blocks.0.motion.lora_B.weight": torch.ones(1, 1),
            },
            {},
            "is not for --base tiny (there is no layer down_blocks_0_motion)",
        ),
        (wide(32) | {next(iter(wide(32))): torch.full((4, 32), torch.nan)}, {}, "is damaged"),
    ],
)
def test_loras_for_another_model_say_for_which(
    tmp_path: Path, state: dict[str, Tensor], metadata: dict[str, str], words: str | None
) -> None:
    save_file(state, tmp_path / "a.safetensors", metadata=metadata)
    pipeline = tiny_pipeline()

    def add() -> None:
        lora = Lora(Choice(tmp_path / "a.safetensors", 1.0))
        merge([lora], "tiny", pipeline.unet, pipeline.text_encoder, torch.float32)

    if words is None:
        add()
        return
    with pytest.raises(MsdvError) as caught:
        add()
    assert words in str(caught.value)


def test_what_has_no_place_is_said(tmp_path: Path) -> None:
    extra = {f"lora_te_text_model_encoder_layers_{n}_mlp_fc1.{role}.weight": torch.zeros(2, 2)
             for n in (2, 3, 4, 5) for role in ("lora_down", "lora_up")}  # fmt: skip
    save_file(wide(32) | extra | {"stray": torch.zeros(1)}, tmp_path / "a.safetensors")
    pipeline = tiny_pipeline()
    lora = Lora(Choice(tmp_path / "a.safetensors", 1.0))
    (line,) = merge([lora], "tiny", pipeline.unet, pipeline.text_encoder, torch.float32)
    assert line.startswith(
        "LoRA a.safetensors, weight 1: 1 layers; left out, since this image model has no place for it:"
    )
    assert line.endswith("... (5)") and "layers_2_mlp_fc1" in line


def test_pickles_that_hold_code_are_refused(tmp_path: Path) -> None:
    torch.save({"lora": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(MsdvError, match="loading them would run code"):
        Lora(Choice(tmp_path / "a.pt", 1.0))


def test_files_and_weights_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b:2.safetensors"):
        Path(name).touch()
    assert parse_lora("a.safetensors") == Choice(Path("a.safetensors"), 1.0)
    assert parse_lora("a.safetensors:0.5") == Choice(Path("a.safetensors"), 0.5)
    assert parse_lora("a.safetensors:-1e-1") == Choice(Path("a.safetensors"), -0.1)
    assert parse_lora("b:2.safetensors:.25") == Choice(Path("b:2.safetensors"), 0.25)
    for text, words in {
        "c.safetensors:0.5": "--lora c.safetensors does not exist",
        r"C:\loras\c.safetensors": r"--lora C:\loras\c.safetensors does not exist",
        "C:/loras/c.safetensors": "--lora C:/loras/c.safetensors does not exist",
        "a.safetensors:much": "the weight behind the colon must be a number: 0.8",
        "a.safetensors:nan": "the weight must be -100 to 100",
        "a.safetensors:": "the weight behind the colon must be a number",
        ".": "is a folder: give the file in it, a.safetensors",
        "": "no file is named",
        ":1": "no file is named",
    }.items():
        with pytest.raises(UsageError) as caught:
            parse_lora(text)
        assert words in str(caught.value), text
