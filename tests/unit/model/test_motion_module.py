"""Motion modules in a video UNet are those of diffusers' `UNetMotionModel`."""

import copy

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import MotionAdapter, UNetMotionModel
from torch import Tensor

from msdv.errors import UsageError
from msdv.model.inflate import VideoUNet, inflate, is_temporal
from msdv.model.motion_module import HEADS
from tests.tiny import tiny_unet

SHAPES = [
    pytest.param({}, id="sd1"),
    pytest.param({"sd2": True}, id="sd2"),
    pytest.param({"blocks": 4}, id="four blocks"),
]


def trained(unet: UNet2DConditionModel, **settings: object) -> VideoUNet:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        model = inflate(unet, arch="motion-module", **settings)  # type: ignore[arg-type]
        for parameter in model.temporal_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def inputs(unet: UNet2DConditionModel, b: int = 2, f: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(b, unet.config.in_channels, f, 16, 16, generator=generator)
    text = torch.randn(b, 7, unet.config.cross_attention_dim, generator=generator)
    return sample, torch.tensor([10, 900])[:b], text


def adapter_for(unet: UNet2DConditionModel, mid_block: bool) -> MotionAdapter:
    config = unet.config
    return MotionAdapter(
        block_out_channels=config.block_out_channels,
        motion_layers_per_block=config.layers_per_block,
        motion_num_attention_heads=HEADS,
        motion_norm_num_groups=config.norm_num_groups,
        use_motion_mid_block=mid_block,
    )


@pytest.mark.parametrize("shape", [*SHAPES, pytest.param({"in_channels": 9}, id="inpainting")])
@torch.no_grad()
def test_untrained_is_the_image_model_bit_for_bit(shape: dict) -> None:
    unet = tiny_unet(**shape)
    model = inflate(copy.deepcopy(unet), arch="motion-module", mid_block=True)
    sample, t, text = inputs(unet)
    frames = sample.transpose(1, 2).flatten(0, 1).contiguous()
    expected = unet(frames, t.repeat_interleave(5), text.repeat_interleave(5, 0)).sample
    got = model(sample, t, text[:, None].repeat(1, 5, 1, 1))
    assert torch.equal(got, expected.view(2, 5, 4, 16, 16).transpose(1, 2))


@pytest.mark.parametrize("mid_block", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_trained_computes_what_diffusers_computes(shape: dict, mid_block: bool) -> None:
    unet = tiny_unet(**shape)
    model = trained(copy.deepcopy(unet), mid_block=mid_block)
    adapter = adapter_for(unet, mid_block)
    adapter.load_state_dict({**adapter.state_dict(), **model.temporal_parameters()})
    peer = UNetMotionModel.from_unet2d(unet, adapter).eval()
    sample, t, text = inputs(unet)
    expected = peer(sample, t, text.repeat_interleave(5, 0)).sample
    torch.testing.assert_close(model(sample, t, text), expected, atol=1e-5, rtol=1e-4)
    with model.temporal_layers_off():
        assert (model(sample, t, text) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_norms_of_each_frame_differ_from_joint_ones() -> None:
    joint, frame = (trained(tiny_unet(), group_norm=mode) for mode in ("joint", "frame"))
    sample, t, text = inputs(joint.unet)
    one = sample[:, :, :1]
    torch.testing.assert_close(joint(one, t, text), frame(one, t, text), atol=1e-5, rtol=1e-4)
    assert (joint(sample, t, text) - frame(sample, t, text)).abs().max() > 1e-3


@torch.no_grad()
def test_the_order_of_frames_matters() -> None:
    model = trained(tiny_unet())
    sample, t, text = inputs(model.unet)
    assert (model(sample.flip(2), t, text).flip(2) - model(sample, t, text)).abs().max() > 1e-3


def test_more_frames_than_there_are_positions_name_the_way_out() -> None:
    model = inflate(tiny_unet(), arch="motion-module")
    with pytest.raises(UsageError, match=r"33 frames at once: motion modules see no more than 32: .* --window"):
        model(*inputs(model.unet, f=33))


@pytest.mark.parametrize(("mid_block", "count"), [(False, 520), (True, 546)])
def test_at_stable_diffusion_size_names_and_shapes_are_those_of_diffusers(mid_block: bool, count: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        adapter = adapter_for(unet, mid_block)
        model = inflate(unet, arch="motion-module", mid_block=mid_block)
    expected = {key: tensor.shape for key, tensor in adapter.named_parameters()}
    got = {key: tensor.shape for key, tensor in model.temporal_parameters().items()}
    assert got == expected
    assert {k for k, p in model.unet.named_parameters() if p.requires_grad} == set(got)
    assert model.mid_block == mid_block
    assert len(got) == count


def test_position_encodings_follow_the_precision() -> None:
    model = inflate(tiny_unet().half(), arch="motion-module")
    tensors = {**dict(model.unet.named_parameters()), **dict(model.unet.named_buffers())}
    assert {tensor.dtype for key, tensor in tensors.items() if is_temporal(key)} == {torch.float16}
