import copy

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from msdv.errors import MsdvError
from msdv.model.inflate import inflate, is_temporal, spatial_key
from tests.tiny import tiny_unet

SHAPES = [
    pytest.param({}, id="sd1"),
    pytest.param({"sd2": True}, id="sd2"),
    pytest.param({"in_channels": 9}, id="inpainting"),
    pytest.param({"blocks": 4}, id="four blocks"),
]


def inputs(unet: UNet2DConditionModel, b: int = 2, f: int = 5, size: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(b, unet.config.in_channels, f, size, size, generator=generator)
    text = torch.randn(b, 7, unet.config.cross_attention_dim, generator=generator)
    return sample, torch.tensor([10, 900])[:b], text


def frame_by_frame(
    unet: UNet2DConditionModel, sample: torch.Tensor, t: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    b, _, f, h, w = sample.shape
    frames = sample.transpose(1, 2).flatten(0, 1).contiguous()
    out = unet(frames, t.repeat_interleave(f), text.repeat_interleave(f, 0)).sample
    return out.view(b, f, 4, h, w).transpose(1, 2)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_untrained_is_the_image_model_bit_for_bit(shape: dict) -> None:
    unet = tiny_unet(**shape)
    model = inflate(copy.deepcopy(unet))
    sample, t, text = inputs(unet)
    expected = frame_by_frame(unet, sample, t, text)
    assert torch.equal(model(sample, t, text[:, None].repeat(1, 5, 1, 1)), expected)
    # One text a clip shares its keys among the frames: another order of sums, the same result but for rounding.
    torch.testing.assert_close(model(sample, t, text), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_channels_last_computes_the_same() -> None:
    unet = tiny_unet()
    sample, t, text = inputs(unet)
    expected = frame_by_frame(unet, sample, t, text)
    torch.testing.assert_close(inflate(unet, channels_last=True)(sample, t, text), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["frame", "joint"])
def test_trained_layers_see_time_and_switched_off_are_the_image_model(mode: str) -> None:
    unet = tiny_unet()
    model = inflate(copy.deepcopy(unet), mode)
    for parameter in model.temporal_parameters().values():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    sample, t, text = inputs(unet)
    out = model(sample, t, text)
    other = sample.clone()
    other[:, :, -1] += 1  # the last frame alone
    assert not torch.equal(model(other, t, text)[:, :, 0], out[:, :, 0])
    with model.temporal_layers_off():
        assert torch.equal(model(sample, t, text[:, None].repeat(1, 5, 1, 1)), frame_by_frame(unet, sample, t, text))


@torch.no_grad()
def test_joint_group_norm_takes_statistics_over_all_frames() -> None:
    unet = tiny_unet()
    frame, joint = inflate(copy.deepcopy(unet), "frame"), inflate(copy.deepcopy(unet), "joint")
    sample, t, text = inputs(unet)
    still = sample[:, :, :1].repeat(1, 1, 5, 1, 1)
    # Of frames that are alike the statistics are alike.
    torch.testing.assert_close(frame(still, t, text), joint(still, t, text), atol=1e-5, rtol=1e-4)
    assert (frame(sample, t, text) - joint(sample, t, text)).abs().max() > 1e-3


@torch.no_grad()
def test_clips_in_a_batch_do_not_see_each_other() -> None:
    model = inflate(tiny_unet(), "joint")
    for parameter in model.temporal_parameters().values():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    sample, t, text = inputs(model.unet)
    both = model(sample, t, text)
    torch.testing.assert_close(both[1:], model(sample[1:], t[1:], text[1:]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_names_are_those_of_2022(shape: dict) -> None:
    unet = tiny_unet(**shape)
    spatial = set(unet.state_dict())
    convolutions = [n for n, m in unet.named_modules() if isinstance(m, torch.nn.Conv2d) and "proj_" not in n]
    blocks = [n for n, _ in unet.named_modules() if n.endswith("transformer_blocks.0")]
    model = inflate(unet)
    keys = set(model.unet.state_dict())
    assert {spatial_key(key) for key in keys if not is_temporal(key)} == spatial
    expected = {f"{n}.temporal_conv.{p}" for n in convolutions for p in ("weight", "bias")}
    layers = ["attn_temporal.to_q.weight", "attn_temporal.to_k.weight", "attn_temporal.to_v.weight"]
    layers += ["attn_temporal.to_out.0.weight", "attn_temporal.to_out.0.bias"]
    layers += ["norm_temporal.weight", "norm_temporal.bias"]
    expected |= {f"{n}.{layer}" for n in blocks for layer in layers}
    assert {key for key in keys if is_temporal(key)} == expected == set(model.temporal_parameters())


def test_only_temporal_parameters_are_trainable() -> None:
    model = inflate(tiny_unet())
    assert {k for k, p in model.unet.named_parameters() if p.requires_grad} == set(model.temporal_parameters())


def test_at_stable_diffusion_size_the_counts_are_those_of_2022() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(in_channels=9, cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        model = inflate(unet)
    temporal = model.temporal_parameters()
    convolution = [p.numel() for k, p in temporal.items() if "temporal_conv" in k]
    attention = [p.numel() for k, p in temporal.items() if "temporal_conv" not in k]
    assert (len(convolution), len(attention)) == (132, 112)
    assert sum(convolution) + sum(attention) == 241_043_252
    assert sum(p.numel() for p in model.parameters()) == 1_100_578_616


def test_weights_of_another_model_are_refused_by_name() -> None:
    model = inflate(tiny_unet())
    state = {k: v.detach().clone() for k, v in model.temporal_parameters().items()}
    state["conv_in.temporal_conv.weight"] = torch.zeros(3, 3, 3)
    state["extra"] = state.pop("conv_out.temporal_conv.bias")
    with pytest.raises(MsdvError, match=r"conv_out.temporal_conv.bias is missing; extra is unknown; conv_in") as error:
        model.load_temporal(state)
    assert "--base" in str(error.value)


def test_a_unet_of_another_family_is_refused() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=16,
        norm_num_groups=8,
        attention_head_dim=8,
        only_cross_attention=True,
    )
    with pytest.raises(MsdvError, match="not as in Stable Diffusion"):
        inflate(unet)
