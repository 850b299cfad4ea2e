import pytest
import torch
from torch import Tensor

from msdv.model import layers
from msdv.model.layers import TemporalAttention, TemporalConv

FRAMES = 3


def trained_conv() -> TemporalConv:
    conv = TemporalConv(8)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return conv


def clips(channels_last: bool = False) -> Tensor:
    x = torch.randn(2 * FRAMES, 8, 7, 4, generator=torch.Generator().manual_seed(1))
    return x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def with_gradients(conv: TemporalConv, x: Tensor, parts: int) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = conv(x, FRAMES, parts)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    return [y.detach(), *torch.autograd.grad(y, [x, *conv.parameters()], gradient)]


def test_a_temporal_convolution_starts_as_the_identity() -> None:
    x = clips()
    assert torch.equal(TemporalConv(8)(x, FRAMES), x)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_temporal_convolution_is_one_over_frames_at_each_position(channels_last: bool) -> None:
    conv = trained_conv()
    y = conv(clips(channels_last), FRAMES)
    at_positions = clips().view(2, FRAMES, 8, 7, 4).permute(0, 3, 4, 2, 1).reshape(-1, 8, FRAMES)
    expected = torch.nn.functional.conv1d(at_positions, conv.weight, conv.bias, padding=1)
    expected = expected.view(2, 7, 4, 8, FRAMES).permute(0, 4, 3, 1, 2).flatten(0, 1)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("parts", [2, 3, 7, 20])
def test_rows_in_parts_give_the_same_gradients(parts: int, channels_last: bool) -> None:
    conv = trained_conv()
    mine, expected = (with_gradients(conv, clips(channels_last), count) for count in (parts, 1))
    torch.testing.assert_close(mine, expected, atol=2e-5, rtol=1e-5)
    assert mine[0].stride() == expected[0].stride()


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_small_convolution_is_the_same_as_a_product(monkeypatch: pytest.MonkeyPatch, channels_last: bool) -> None:
    conv, x = trained_conv(), clips(channels_last)
    expected = with_gradients(conv, x, 1)
    assert not conv._is_small(x)
    monkeypatch.setattr(layers, "MOST_ROWS_AS_PRODUCT", x.shape[0] * x.shape[2:].numel())
    assert conv._is_small(x)
    mine = with_gradients(conv, x, 1)
    torch.testing.assert_close(mine, expected, atol=2e-5, rtol=1e-5)
    assert mine[0].stride() == expected[0].stride()
    assert torch.equal(TemporalConv(8)(x, FRAMES), x)


def test_temporal_attention_sees_the_frames_of_its_clip_at_its_position() -> None:
    torch.manual_seed(0)
    layer = TemporalAttention(16, 2)
    x = torch.randn(2 * FRAMES, 5, 16)
    assert torch.equal(layer(x, FRAMES), torch.zeros_like(x))
    with torch.no_grad():
        layer.to_out[0].weight.normal_()
        y = layer(x, FRAMES)
        for clip in range(2):
            for position in range(5):
                frames = x[clip * FRAMES : (clip + 1) * FRAMES, position]
                query, key, value = (
                    to(frames).view(FRAMES, 2, 8).transpose(0, 1) for to in (layer.to_q, layer.to_k, layer.to_v)
                )
                heads = ((query @ key.transpose(1, 2)) / 8**0.5).softmax(-1) @ value
                expected = layer.to_out[0](heads.transpose(0, 1).reshape(FRAMES, 16))
                torch.testing.assert_close(
                    y[clip * FRAMES : (clip + 1) * FRAMES, position], expected, atol=1e-5, rtol=1e-4
                )
