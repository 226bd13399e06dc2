"""One block of Infinity's transformer: cosine attention over all scales so far, cross-attention to text, feed-forward.

Shapes: R rows of a pass, L tokens of a scale, C width, H heads, D head width, T tokens of text.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, normalize

from src.modules.next_scale.cache import attention, rotate
from src.modules.next_scale.loop import Condition, Streams

MAX_LOG_TEMPERATURE = math.log(100)
EPS = 1e-6
Rotation = tuple[Tensor, Tensor]
"""Rotary cosines and sines of the tokens of this pass, ``(L, D / 2)`` each."""


class Attention(Protocol):
    """What a block attends with: a ``KeyValueCache`` when drawing, a ``MaskedAttention`` in training."""

    def attend(
        self, block: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, first_stream: int = 0
    ) -> Tensor:
        """Attend to the new tokens and to earlier scales, see ``KeyValueCache.attend``."""


def normed(hidden: Tensor) -> Tensor:
    """Layer norm without gain and bias, in float32."""
    return layer_norm(hidden.float(), hidden.shape[-1:], eps=EPS)


def split_heads(states: Tensor, num_heads: int) -> Tensor:
    """Split the width into heads, ``(R, L, C) -> (R, H, L, D)``."""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Cosine attention: queries and keys of norm 1, rotated to their position, and a learnt temperature per head."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qk, self.q_bias = nn.Linear(width, 2 * width, bias=False), nn.Parameter(torch.zeros(width))
        self.to_v, self.proj = nn.Linear(width, width), nn.Linear(width, width)
        self.log_temperature = nn.Parameter(torch.full((num_heads, 1, 1), math.log(4)))

    def forward(
        self,
        index: int,
        hidden: Tensor,
        rotation: Rotation,
        memory: Attention,
        streams: Streams,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Attend, ``(R, L, C) -> (R, L, C)``; if ``kept`` is given, only these rows have values and a result."""
        hidden = hidden.to(self.to_v.weight.dtype)
        values = split_heads(self.to_v(hidden if kept is None else hidden[kept]), self.num_heads)  # (R, H, L, D)
        queries, keys = linear(streams.owners(hidden), self.to_qk.weight).chunk(2, dim=-1)
        queries, keys = (split_heads(states, self.num_heads) for states in (queries + self.q_bias, keys))
        temperature = self.log_temperature.float().clamp(max=MAX_LOG_TEMPERATURE).exp()  # (H, 1, 1)
        queries = rotate(normalize(queries.float(), dim=-1) * temperature, *rotation)
        keys = rotate(normalize(keys.float(), dim=-1), *rotation)
        first = 0 if kept is None else 1
        out = memory.attend(index, queries.to(values.dtype), keys.to(values.dtype), values, 1.0, first)  # (R, H, L, D)
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Image tokens attend to the text, whose keys and values are the same at every scale."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_k = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.to_v, self.proj = nn.Linear(width, width), nn.Linear(width, width)

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Project the text ``(R, T, C)`` to keys and values, ``(R, H, T, D)`` each."""
        context = context.to(self.to_k.weight.dtype)
        return split_heads(self.to_k(context), self.num_heads), split_heads(self.to_v(context), self.num_heads)

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend to the text, ``(R, L, C) -> (R, L, C)``; ``mask`` ``(R, 1, 1, T)`` is false on padding."""
        queries = split_heads(self.to_q(hidden.to(self.to_q.weight.dtype)), self.num_heads)  # (R, H, L, D)
        out = attention(queries, keys, values, queries.shape[-1] ** -0.5, mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class InfinityBlock(nn.Module):
    """One block; hidden states stay in float32 between blocks, matrices work in the precision of their weights."""

    def __init__(self, width: int, num_heads: int, hidden_width: int) -> None:
        super().__init__()
        # Rows: two gates, two scales, two shifts; of each pair the first is for self-attention, the other for fc1, fc2.
        self.ada = nn.Parameter(torch.zeros(6, width))
        self.self_attention = SelfAttention(width, num_heads)
        self.cross_norm = nn.LayerNorm(width, eps=EPS)
        self.cross_attention = CrossAttention(width, num_heads)
        self.fc1, self.fc2 = nn.Linear(width, hidden_width), nn.Linear(hidden_width, width)

    @torch.no_grad()
    def start_close_to_identity(self, depth: int) -> None:
        """Initialise so that this block, one of ``depth``, adds little to the hidden states."""
        nn.init.normal_(self.ada, std=self.ada.shape[-1] ** -0.5)
        self.ada[:2].mul_(5e-6)
        self.ada[2:].mul_(1e-3)
        for layer in (self.self_attention.proj, self.cross_attention.proj, self.fc2):
            layer.weight.div_(math.sqrt(2 * depth))

    def forward(
        self,
        index: int,
        hidden: Tensor,
        condition: Condition,
        rotation: Rotation,
        memory: Attention,
        streams: Streams,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Pass tokens through the block.

        Args:
            index: Number of the block, from 0.
            hidden: Hidden states, ``(R, L, C)``.
            condition: ``ada (R, 6, C)``, ``keys`` and ``values (R, H, T, D)``, and if text is padded ``mask``.
            rotation: Rotary cosines and sines of the tokens.
            memory: Keys and values of earlier scales.
            streams: Which rows are paths of one image.
            kept: Rows that go on beyond queries and keys; None for all.
        """
        _, _, scale, _, shift, _ = condition["ada"].unsqueeze(2).unbind(1)  # (R, 1, C) each
        modulated = normed(hidden) * (1 + scale) + shift
        change = self.self_attention(index, modulated, rotation, memory, streams, kept)
        if kept is not None:
            hidden, condition = hidden[kept], condition.rows(kept)
        gate, gate_2, _, scale, _, shift = condition["ada"].unsqueeze(2).unbind(1)
        hidden = hidden + gate * change  # (R, L, C)
        query = normed(hidden) * self.cross_norm.weight.float() + self.cross_norm.bias.float()
        text = condition["keys"], condition["values"], condition.get("mask")
        hidden = hidden + self.cross_attention(query, *text)
        inner = self.fc1((normed(hidden) * (1 + scale) + shift).to(self.fc1.weight.dtype))  # (R, L, 4 C)
        return hidden + gate_2 * self.fc2(gelu(inner, approximate="tanh"))
