"""One attention call, for space and for time: flash-attn where it is installed and usable, else torch's own."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A CUDA grid has at most 65,535 blocks in y and z, and kernels put batch x heads there. Temporal attention at 512x512
# with guidance has 64 * 64 * 2 * 8 = 65,536.
MAX_BATCH_HEADS = 65_535
# On a CPU torch's fused attention in bfloat16 is slower, its backward pass so much that it takes longer than all
# convolutions of a small model together (docs/measurements.md); up to this many scores, holding them fits.
MAX_CPU_SCORES = 2**27


@functools.cache
def _flash_attn_func() -> Callable[..., Tensor] | None:
    try:
        return importlib.import_module("flash_attn").flash_attn_func
    except ImportError:
        return None


def flash_usable(query: Tensor) -> bool:
    """Whether flash-attn is installed and takes this query: CUDA (Ampere or newer), half precision, heads of up to
    256 channels in multiples of 8."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    head_dim = query.shape[-1]
    if head_dim > 256 or head_dim % 8 or _flash_attn_func() is None:
        return False
    return torch.cuda.get_device_capability(query.device)[0] >= 8


def attention(query: Tensor, key: Tensor, value: Tensor, *, max_batch_heads: int | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, for each batch item and head.

    query (b, q, heads, d), key and value (b, n, heads, d) -> (b, q, heads, d). Where b * heads exceeds
    `max_batch_heads` (default: what CUDA kernels can take, no limit elsewhere) the batch is worked off in parts.
    """
    if max_batch_heads is None and query.is_cuda:
        max_batch_heads = MAX_BATCH_HEADS
    b, heads = query.shape[0], query.shape[2]
    if max_batch_heads is not None and b * heads > max_batch_heads:
        size = max(1, max_batch_heads // heads)
        parts = zip(query.split(size), key.split(size), value.split(size), strict=True)
        return torch.cat([_attention(q, k, v) for q, k, v in parts])
    return _attention(query, key, value)


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if flash_usable(query):
        flash = _flash_attn_func()
        assert flash is not None
        return flash(query, key, value)
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))  # (b, heads, tokens, d)
    scores = query.shape[:3].numel() * key.shape[2]
    if query.device.type == "cpu" and query.dtype != torch.float32 and scores <= MAX_CPU_SCORES:
        return explicit_attention(query, key, value).transpose(1, 2)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def explicit_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The definition, (b, heads, q, d) and (b, heads, n, d) twice -> (b, heads, q, d): all b * heads * q * n scores."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return scores.softmax(-1) @ value


class SpatialAttnProcessor:
    """diffusers' attention processor protocol, for the attention within frames and to the text.

    Text given once a clip, (b, n, c), for frames folded into the batch, (b f) p c, gets its keys and values computed
    once a clip; the queries of all frames then look at them together.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None:
            raise ValueError("attention masks are not used by Stable Diffusion 1.x and 2.x")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch, pixels, _ = hidden_states.shape
        clips = context.shape[0]
        query = attn.to_q(hidden_states).view(clips, batch // clips * pixels, attn.heads, -1)
        key = attn.to_k(context).view(clips, context.shape[1], attn.heads, -1)
        value = attn.to_v(context).view(clips, context.shape[1], attn.heads, -1)
        out = attention(query, key, value).reshape(batch, pixels, -1)
        return attn.to_out[1](attn.to_out[0](out))


def set_spatial_attention(unet: nn.Module) -> None:
    """Make every attention layer of a diffusers UNet compute through `attention`."""
    unet.set_attn_processor(SpatialAttnProcessor())  # type: ignore[operator]
