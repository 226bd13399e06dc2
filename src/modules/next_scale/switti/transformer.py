"""Switti: next-scale prediction of codebook indices from two CLIP encoders' text (arXiv 2412.01819).

Shapes: R rows of a pass, L tokens of a scale, N tokens of all scales, C width, H heads, D head width, T tokens of text,
d channels of a code, V codes.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Protocol, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention, silu

from src.modules.next_scale.cache import MaskedAttention, rotate
from src.modules.next_scale.loading import PartlyExact
from src.modules.next_scale.loop import Condition, Streams

EPS = 1e-6

Rotation = tuple[Tensor, Tensor]
"""Rotary cosines and sines of the tokens of this pass, ``(L, D / 2)`` each."""


class Attention(Protocol):
    """What a block attends with: a ``KeyValueCache`` when drawing, a ``MaskedAttention`` in training."""

    def attend(
        self, block: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, first_stream: int = 0
    ) -> Tensor:
        """Attend to the new tokens and to earlier scales, see ``KeyValueCache.attend``."""


def normed(states: Tensor) -> Tensor:
    """Layer norm without gain and bias."""
    return layer_norm(states, states.shape[-1:], eps=EPS)


def _in_heads(states: Tensor, heads: int) -> Tensor:
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Self-attention whose queries and keys are layer-normed over all heads together, then rotated."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def queries_and_keys(self, hidden: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Project to queries and keys, ``(R, L, C) -> (R, H, L, D)`` each."""
        rows = slice(2 * hidden.shape[-1])
        queries, keys = linear(hidden, self.to_qkv.weight[rows], self.to_qkv.bias[rows]).chunk(2, dim=-1)
        turned = [rotate(_in_heads(normed(states), self.heads), *rotation) for states in (queries, keys)]
        return turned[0], turned[1]

    def values(self, hidden: Tensor) -> Tensor:
        """Project to values, ``(R, L, C) -> (R, H, L, D)``."""
        rows = slice(2 * hidden.shape[-1], None)
        return _in_heads(linear(hidden, self.to_qkv.weight[rows], self.to_qkv.bias[rows]), self.heads)


class CrossAttention(nn.Module):
    """Image tokens attend to the text, whose keys and values are the same at every scale."""

    def __init__(self, width: int, heads: int, text_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(text_dim, 2 * width)
        self.proj = nn.Linear(width, width)

    def keys_and_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Project the text ``(R, T, text_dim)`` to keys and values, ``(R, H, T, D)`` each."""
        keys, values = self.to_kv(text).chunk(2, dim=-1)
        return _in_heads(normed(keys), self.heads), _in_heads(values, self.heads)

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attend to the text, ``(R, L, C) -> (R, L, C)``; ``mask`` ``(R, 1, 1, T)`` is false on padding."""
        queries = _in_heads(normed(self.to_q(hidden)), self.heads)
        return self.proj(_joined(scaled_dot_product_attention(queries, keys, values, attn_mask=mask)))


class FeedForward(nn.Module):
    """A gated feed-forward layer with SiLU (SwiGLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden_width = int(4 * width * 2 / 3)
        self.gate_proj = nn.Linear(width, hidden_width, bias=False)
        self.up_proj = nn.Linear(width, hidden_width, bias=False)
        self.down_proj = nn.Linear(hidden_width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the layer, ``(R, L, C) -> (R, L, C)``."""
        return self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class CropEmbedding(nn.Module):
    """Embeds sizes and offsets in pixels as waves of learnt frequencies, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width // 8))

    def forward(self, pixels: Tensor) -> Tensor:
        """Concatenate sines and cosines of each number, ``(..., 4) -> (..., C)``."""
        phases = 2 * math.pi * pixels.float()[..., None] * self.weight.float()  # (..., 4, C / 8)
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
        """Compute what the block needs of the text: ``ada (R, 6, C)``, ``keys`` and ``values (R, H, T, D)``."""
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
        """Pass tokens on, ``(R, L, C) -> (R, L, C)``; with ``kept``, only these rows go beyond queries and keys."""
        # Two gates, two scales, two shifts; of each pair the first is for self-attention, the other for the last layer.
        ada = condition["ada"].unsqueeze(2)  # (R, 6, 1, C)
        modulated = self.self_attention_norm1(hidden) * (1 + ada[:, 2]) + ada[:, 4]  # (R, L, C)
        queries, keys = self.attn.queries_and_keys(streams.owners(modulated), rotation)
        if kept is not None:
            hidden, modulated, ada, condition = hidden[kept], modulated[kept], ada[kept], condition.rows(kept)
        values, scale = self.attn.values(modulated), queries.shape[-1] ** -0.5  # (R, H, L, D)
        attended = attention.attend(index, queries, keys, values, scale, first_stream=int(kept is not None))
        hidden = hidden + self.self_attention_norm2(self.attn.proj(_joined(attended))) * ada[:, 0]
        text = (condition["keys"], condition["values"], condition["mask"])
        hidden = hidden + self.cross_attention_norm2(self.cross_attn(self.cross_attention_norm1(hidden), *text))
        modulated = self.ffn_norm1(hidden) * (1 + ada[:, 3]) + ada[:, 5]
        return hidden + self.ffn_norm2(self.ffn(modulated)) * ada[:, 1]


SCHEDULES = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
"""Side of the image in pixels to the sides of the grids that the released model draws on."""


class SwittiTransformer(PartlyExact, ModelMixin, ConfigMixin):
    """Predicts the logits of one scale's indices from the running sum of earlier scales.

    Args:
        depth: Number of blocks.
        width: Width C of a token.
        num_heads: Heads of self- and cross-attention.
        sides: Sides of the square grids, from 1 to that of the whole image.
        text_dim: Width of both text encoders together.
        pooled_dim: Width of the second text encoder.
        latent_channels: Channels d of the tokenizer's codes.
        num_codes: Number of codes V in the tokenizer's codebook.
        use_ar: Whether tokens see earlier scales and their own; otherwise they see only their own.
        use_crop_cond: Whether the model is told how its training images were cropped.
        rope_theta: Base of the rotary frequencies.
        rope_size: Rotary position of the last cell of every grid.

    Raises:
        ValueError: If the schedule or the width is impossible.
    """

    exact = ("crop_embed",)

    @register_to_config
    def __init__(
        self,
        depth: int = 30,
        width: int = 1920,
        num_heads: int = 30,
        sides: Sequence[int] = SCHEDULES[512],
        text_dim: int = 2048,
        pooled_dim: int = 1280,
        latent_channels: int = 32,
        num_codes: int = 4096,
        use_ar: bool = False,
        use_crop_cond: bool = True,
        rope_theta: float = 10000.0,
        rope_size: int = 128,
    ) -> None:
        super().__init__()
        _check(sides, width, num_heads)
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.word_embed, self.text_pooler = nn.Linear(latent_channels, width), nn.Linear(pooled_dim, width)
        self.lvl_embed = nn.Embedding(len(sides), width)
        self.blocks = nn.ModuleList(Block(width, num_heads, text_dim, use_crop_cond) for _ in range(depth))
        self.crop_embed = CropEmbedding(width) if use_crop_cond else None
        self.crop_proj = nn.Linear(width, width) if use_crop_cond else None
        self.head_ada_lin, self.head = nn.Linear(width, 2 * width), nn.Linear(width, num_codes)

    @property
    def sides(self) -> Sequence[int]:
        """Sides of the grids."""
        return self.config.sides

    @property
    def num_tokens(self) -> int:
        """Number of tokens N of all scales."""
        return sum(side**2 for side in self.sides)

    @apply_forward_hook
    def condition(
        self,
        text: Tensor,
        mask: Tensor,
        pooled: Tensor,
        size_and_crop: Sequence[float] | Tensor = (512.0, 512.0, 0.0, 0.0),
    ) -> Condition:
        """Compute everything that depends on the text only, once for all scales.

        Args:
            text: States of both encoders side by side, ``(R, T, text_dim)``.
            mask: Which tokens are not padding, boolean ``(R, T)``.
            pooled: State of the second encoder's end token, ``(R, pooled_dim)``.
            size_and_crop: Height and width of the training image once its short side is 512 pixels, and the crop's top
                and left, ``(4,)`` or ``(R, 4)``.

        Returns:
            ``start (R, 1, C)``, ``head_ada (R, 2, C)``, ``mask (R, 1, 1, T)``, and of each block ``ada``, ``keys`` and
            ``values``, stacked along the second axis.
        """
        text, pooled = text.to(self.word_embed.weight), self.text_pooler(pooled.to(self.word_embed.weight))
        blocks, crop = cast(Iterable[Block], self.blocks), self._crop(size_and_crop)
        of_blocks = [block.condition(text, pooled, crop) for block in blocks]
        return Condition(
            {name: torch.stack([each[name] for each in of_blocks], dim=1) for name in of_blocks[0]},
            start=pooled.unsqueeze(1) + self.pos_start,
            head_ada=self.head_ada_lin(silu(pooled)).unflatten(-1, (2, -1)),
            mask=mask[:, None, None],
        )

    def _crop(self, size_and_crop: Sequence[float] | Tensor) -> Tensor | None:
        if self.crop_embed is None or self.crop_proj is None:
            return None
        pixels = torch.as_tensor(size_and_crop, device=self.crop_embed.weight.device)
        return self.crop_proj(self.crop_embed(pixels).to(self.crop_proj.weight))

    def forward(self, tokens: Tensor, condition: Condition) -> Tensor:
        """Predict the logits of all scales at once, from inputs that the true codes lead to (teacher forcing).

        Args:
            tokens: Running sums of earlier scales on the grid of each scale but the first, ``(R, N - 1, d)``.
            condition: The result of ``condition``.

        Returns:
                Logits of all codes, ``(R, N, V)``, float32.
        """
        areas = torch.tensor([side**2 for side in self.sides], device=tokens.device)
        scale_of = torch.repeat_interleave(torch.arange(len(areas), device=tokens.device), areas)
        visible = scale_of[:, None] >= scale_of if self.config.use_ar else scale_of[:, None] == scale_of  # (N, N)
        embedded = torch.cat([condition["start"], self.word_embed(tokens.to(self.word_embed.weight))], dim=1)
        cosines, sines = zip(*(self._rotation(side) for side in self.sides), strict=True)
        rotation = torch.cat(cosines), torch.cat(sines)
        hidden = embedded + self.lvl_embed(scale_of)  # (R, N, C)
        return self._logits(hidden, condition, rotation, MaskedAttention(visible), Streams())

    def scale_logits(
        self, tokens: Tensor | None, scale_index: int, condition: Condition, attention: Attention, streams: Streams
    ) -> Tensor:
        """Predict the logits of one scale, ``(R, L, V)``, float32.

        Args:
            tokens: Running sum on the grid of the scale, ``(R, L, d)``; None at the first scale.
            scale_index: Number of the scale, from 0.
            condition: The result of ``condition``.
            attention: Keys and values of earlier scales.
            streams: Which rows are paths of one image; if it drops first paths, the result lacks their rows.
        """
        start = condition["start"] if tokens is None else self.word_embed(tokens.to(self.word_embed.weight))
        hidden = start + self.lvl_embed.weight[scale_index]
        return self._logits(hidden, condition, self._rotation(self.sides[scale_index]), attention, streams)

    def _logits(
        self, hidden: Tensor, condition: Condition, rotation: Rotation, attention: Attention, streams: Streams
    ) -> Tensor:
        kept = streams.kept(len(hidden))
        for index, block in enumerate(self.blocks):
            of_block = Condition({name: condition[name][:, index] for name in ("ada", "keys", "values")})
            of_block["mask"] = condition["mask"]
            ending = kept if block is self.blocks[-1] else None
            hidden = block(index, hidden, of_block, rotation, attention, streams, ending)
        head_ada = condition["head_ada"] if kept is None else condition["head_ada"][kept]
        scales, shifts = head_ada.unsqueeze(2).unbind(1)  # (R, 1, C) each
        return self.head(normed(hidden) * (1 + scales) + shifts).float()

    def _rotation(self, side: int) -> Rotation:
        width, heads, device = self.config.width, self.config.num_heads, self.word_embed.weight.device
        exponents = torch.arange(width // heads // 4, device=device) * (4 * heads / width)
        frequencies = self.config.rope_theta**-exponents
        steps = torch.arange(side, device=device) * (self.config.rope_size / max(side - 1, 1))
        columns, rows = steps.repeat(side), steps.repeat_interleave(side)  # (L,) each, row by row
        angles = torch.cat([torch.outer(columns, frequencies), torch.outer(rows, frequencies)], dim=1)  # (L, D / 2)
        return angles.cos(), angles.sin()


def _check(sides: Sequence[int], width: int, num_heads: int) -> None:
    rising = len(sides) > 1 and sides[0] == 1 and all(a < b for a, b in zip(sides[:-1], sides[1:], strict=True))
    if not rising:
        raise ValueError(f"the scale schedule has sides {list(sides)}; give at least two that rise from 1")
    if width % (4 * num_heads) or width % 8:
        raise ValueError(f"a width of {width} does not split into {num_heads} heads of a multiple of 4, or not by 8")
