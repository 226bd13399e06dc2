"""A block of Switti's transformer.

Shapes: R rows of a pass, L tokens, C width, H heads, D head width, T tokens of text.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention, silu

from src.modules.scale_ar.cache import rotate
from src.modules.scale_ar.generation import Condition, Streams

EPS = 1e-6

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines ``(L, D / 2)`` of the rotary embedding."""


class Attention(Protocol):
    """What a block's queries, keys and values go to: a ``KeyValueCache``, or all scales at once in training."""

    def attend(
        self, block: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, first_stream: int = 0
    ) -> Tensor:
        """See ``KeyValueCache.attend``."""


def normed(states: Tensor) -> Tensor:
    """Layer norm without learnt gain."""
    return layer_norm(states, states.shape[-1:], eps=EPS)


def _in_heads(states: Tensor, heads: int) -> Tensor:
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Queries and keys normed over all heads together, then rotated."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def queries_and_keys(self, hidden: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """``(R, L, C) -> (R, H, L, D)`` twice."""
        rows = slice(2 * hidden.shape[-1])
        queries, keys = linear(hidden, self.to_qkv.weight[rows], self.to_qkv.bias[rows]).chunk(2, dim=-1)
        turned = [rotate(_in_heads(normed(states), self.heads), *rotation) for states in (queries, keys)]
        return turned[0], turned[1]

    def values(self, hidden: Tensor) -> Tensor:
        """``(R, L, C) -> (R, H, L, D)``."""
        rows = slice(2 * hidden.shape[-1], None)
        return _in_heads(linear(hidden, self.to_qkv.weight[rows], self.to_qkv.bias[rows]), self.heads)


class CrossAttention(nn.Module):
    """Attention to text, whose keys and values are made once for all scales."""

    def __init__(self, width: int, heads: int, text_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(text_dim, 2 * width)
        self.proj = nn.Linear(width, width)

    def keys_and_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """``(R, T, text_dim) -> (R, H, T, D)`` twice."""
        keys, values = self.to_kv(text).chunk(2, dim=-1)
        return _in_heads(normed(keys), self.heads), _in_heads(values, self.heads)

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """``(R, L, C) -> (R, L, C)``."""
        queries = _in_heads(normed(self.to_q(hidden)), self.heads)
        return self.proj(_joined(scaled_dot_product_attention(queries, keys, values, attn_mask=mask)))


class FeedForward(nn.Module):
    """Gated linear units with SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden_width = int(4 * width * 2 / 3)
        self.gate_proj = nn.Linear(width, hidden_width, bias=False)
        self.up_proj = nn.Linear(width, hidden_width, bias=False)
        self.down_proj = nn.Linear(hidden_width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(R, L, C) -> (R, L, C)``."""
        return self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class CropEmbedding(nn.Module):
    """Sizes and offsets in pixels as waves of learnt frequencies, ``(..., 4) -> (..., C)``, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width // 8))

    def forward(self, pixels: Tensor) -> Tensor:
        """Sines and cosines of each number beside each other."""
        phases = 2 * math.pi * pixels.float()[..., None] * self.weight.float()
        return torch.cat([phases.sin(), phases.cos()], dim=-1).flatten(-2)


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward layer, each normed on its way in and out."""

    def __init__(self, width: int, heads: int, text_dim: int, use_crop_cond: bool) -> None:
        super().__init__()
        self.attn, self.cross_attn = SelfAttention(width, heads), CrossAttention(width, heads, text_dim)
        self.ffn = FeedForward(width)
        self.self_attention_norm1, self.self_attention_norm2 = nn.RMSNorm(width, EPS), nn.RMSNorm(width, EPS)
        self.cross_attention_norm1, self.cross_attention_norm2 = nn.RMSNorm(width, EPS), nn.RMSNorm(width, EPS)
        self.ffn_norm1, self.ffn_norm2 = nn.RMSNorm(width, EPS), nn.RMSNorm(width, EPS)
        self.attention_y_norm = nn.RMSNorm(text_dim, EPS)
        self.ada_lin = nn.Linear(width, 6 * width)
        self.crop_cond_scales = nn.Parameter(torch.zeros(1, width)) if use_crop_cond else None

    def condition(self, text: Tensor, pooled: Tensor, crop: Tensor | None) -> Condition:
        """What the block needs of the text at every scale: ``ada (R, 6, C)``, ``keys`` and ``values (R, H, T, D)``."""
        if crop is not None and self.crop_cond_scales is not None:
            pooled = pooled + self.crop_cond_scales * crop
        keys, values = self.cross_attn.keys_and_values(self.attention_y_norm(text))
        return Condition(ada=self.ada_lin(silu(pooled)).unflatten(-1, (6, -1)), keys=keys, values=values)

    def forward(
        self,
        index: int,
        hidden: Tensor,
        condition: Condition,
        rotation: Rotation,
        attention: Attention,
        streams: Streams,
        kept: Tensor | None,
    ) -> Tensor:
        """``(R, L, C) -> (R, L, C)``; if ``kept`` is given, only these rows go on beyond queries and keys."""
        ada = condition["ada"].unsqueeze(2)
        modulated = self.self_attention_norm1(hidden) * (1 + ada[:, 2]) + ada[:, 4]
        queries, keys = self.attn.queries_and_keys(streams.owners(modulated), rotation)
        if kept is not None:
            hidden, modulated, ada, condition = hidden[kept], modulated[kept], ada[kept], condition.rows(kept)
        values, scale = self.attn.values(modulated), queries.shape[-1] ** -0.5
        attended = attention.attend(index, queries, keys, values, scale, first_stream=int(kept is not None))
        hidden = hidden + self.self_attention_norm2(self.attn.proj(_joined(attended))) * ada[:, 0]
        text = (condition["keys"], condition["values"], condition["mask"])
        hidden = hidden + self.cross_attention_norm2(self.cross_attn(self.cross_attention_norm1(hidden), *text))
        modulated = self.ffn_norm1(hidden) * (1 + ada[:, 3]) + ada[:, 5]
        return hidden + self.ffn_norm2(self.ffn(modulated)) * ada[:, 1]
