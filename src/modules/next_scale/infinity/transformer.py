"""Infinity: next-scale prediction of bits from T5 text (arXiv 2412.04431).

Shapes: R rows of a pass, L tokens of a scale, N tokens of all scales, C width, H heads, D head width, T tokens of text,
E width of text, d bits of a token.
"""

import math
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from src.modules.next_scale.cache import MaskedAttention
from src.modules.next_scale.infinity.block import EPS, Attention, InfinityBlock, Rotation, normed
from src.modules.next_scale.loading import PartlyExact
from src.modules.next_scale.loop import Condition, Streams
from src.modules.next_scale.sampling import guided
from src.modules.next_scale.schedule import Grid, ScaleSchedule

NO_GUIDANCE: Mapping[int, float] = {}


class TextPooling(nn.Module):
    """Attention pooling: one learnt query per head sums up a text, ``(R, T, E) -> (R, C)``."""

    def __init__(self, text_channels: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(num_heads, 1, width // num_heads))
        self.to_k, self.to_v = nn.Linear(text_channels, width, bias=False), nn.Linear(text_channels, width)
        self.proj = nn.Linear(width, width)

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        """Pool the text; ``mask`` ``(R, 1, 1, T)`` is false on padding."""
        heads = len(self.query)
        keys, values = (to(text).unflatten(-1, (heads, -1)).transpose(1, 2) for to in (self.to_k, self.to_v))
        queries = self.query.expand(len(text), -1, -1, -1)  # (R, H, 1, D)
        pooled = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)  # (R, H, 1, D)
        return self.proj(pooled.transpose(1, 2).flatten(1))


class InfinityTransformer(PartlyExact, ModelMixin, ConfigMixin):
    """Predicts two logits for every bit of a scale from the running sum of earlier scales.

    Half precision applies to the matrices of the blocks; everything else and the hidden states stay in float32.

    Args:
        depth: Number of blocks.
        width: Width C of a token.
        num_heads: Heads of self- and cross-attention.
        token_bits: Bits d of a token: those of a tokenizer's cell, or four times as many with ``patchify``.
        patchify: Whether a token is 2 x 2 cells of the tokenizer.
        text_channels: Width E of the text encoder.
        max_text_length: Rows of the learnt table that stands for the missing text of unconditional rows.
        max_scales: Rows of the table of scale embeddings.

    Raises:
        ValueError: If the width does not split into heads, or the bits into cells.
    """

    exact = (
        "text_norm", "text_pooling", "text_proj", "unconditional", "start", "scale_embed", "word_embed", "shared_ada",
        "head_ada", "head",
    )  # fmt: skip

    @register_to_config
    def __init__(
        self,
        depth: int = 32,
        width: int = 2048,
        num_heads: int = 16,
        token_bits: int = 32,
        patchify: bool = False,
        text_channels: int = 2048,
        max_text_length: int = 512,
        max_scales: int = 15,
    ) -> None:
        super().__init__()
        _check(width, num_heads, token_bits, patchify)
        pooling_heads = max(1, text_channels // (128 if width <= 4096 else 64))
        self.text_norm = nn.RMSNorm(text_channels, eps=EPS)
        self.text_pooling = TextPooling(text_channels, width, pooling_heads)
        self.text_proj = nn.Sequential(
            nn.Linear(text_channels, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.unconditional = nn.Parameter(torch.zeros(max_text_length, text_channels))
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.scale_embed, self.word_embed = nn.Embedding(max_scales, width), nn.Linear(token_bits, width)
        self.shared_ada, self.head_ada = nn.Linear(width, 6 * width), nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 2 * token_bits)
        hidden_width = max(1, round(4 * width / 256)) * 256
        self.blocks = nn.ModuleList(InfinityBlock(width, num_heads, hidden_width) for _ in range(depth))
        self._initialise()

    @apply_forward_hook
    def condition(self, text: Tensor, mask: Tensor | None = None) -> Condition:
        """Compute everything that depends on the text only, once for all scales.

        Args:
            text: States of the text encoder, ``(R, T, E)``, padded on the right.
            mask: Which tokens are not padding, boolean ``(R, T)``; None if all of them.

        Returns:
            ``start (R, 1, C)``, ``head_ada (R, 2, C)``, of each block ``ada (R, depth, 6, C)``, ``keys`` and ``values``
            ``(R, depth, H, T, D)``, and if there is padding ``mask (R, 1, 1, T)``.
        """
        spread = None if mask is None or bool(mask.all()) else mask[:, None, None]
        text = self.text_norm(text.to(self.text_norm.weight))
        pooled, context = self.text_pooling(text, spread), self.text_proj(text)
        with torch.autocast(text.device.type, enabled=False):
            active = silu(pooled.to(self.shared_ada.weight))
            shared, head = self.shared_ada(active).float(), self.head_ada(active).float()
        keys, values = zip(*(block.cross_attention.keys_and_values(context) for block in self._stack), strict=True)
        found = Condition(
            start=pooled.float().unsqueeze(1) + self.start,
            head_ada=head.unflatten(-1, (2, -1)),
            ada=torch.stack([shared.unflatten(-1, (6, -1)) + block.ada for block in self._stack], dim=1),
            keys=torch.stack(keys, dim=1),
            values=torch.stack(values, dim=1),
        )
        return found if spread is None else Condition(found, mask=spread)

    def rotation(self, schedule: ScaleSchedule) -> Rotation:
        """Return rotary cosines and sines of all tokens, ``(N, D / 2)`` each, float32: for rows, then columns."""
        device = self.word_embed.weight.device
        frequencies = rotary_frequencies(self.config.width // self.config.num_heads, device)
        places = torch.cat([positions(grid, schedule.position_grid, device) for grid in schedule.grids])  # (N, 2)
        angles = (places[..., None] * frequencies).flatten(1)  # (N, D / 2)
        return angles.cos(), angles.sin()

    def scale_logits(
        self,
        tokens: Tensor | None,
        scale_index: int,
        condition: Condition,
        rotation: Rotation,
        memory: Attention,
        streams: Streams,
        block_guidance: Mapping[int, float] = NO_GUIDANCE,
    ) -> Tensor:
        """Predict the logits of one scale, ``(R, L, 2 d)``, float32: for every bit the logit of 0, then that of 1.

        Args:
            tokens: Running sum on the grid of the scale, ``(R, L, d)``; None at the first scale.
            scale_index: Number of the scale, from 0.
            condition: The result of ``condition``.
            rotation: Rotary cosines and sines of the scale's tokens.
            memory: Keys and values of earlier scales.
            streams: Which rows are paths of one image; if it drops first paths, the result lacks their rows.
            block_guidance: Index of a block to the guidance scale on its output; half of the rows are unconditional.
        """
        start = condition["start"] if tokens is None else self.word_embed(tokens.to(self.word_embed.weight))
        hidden = start + self.scale_embed.weight[scale_index]
        return self._logits(hidden, condition, rotation, memory, streams, block_guidance)

    def forward(self, tokens: Tensor, condition: Condition, schedule: ScaleSchedule) -> Tensor:
        """Predict the logits of all scales at once; a token sees its own and all earlier scales (teacher forcing).

        Args:
            tokens: Running sums of earlier scales on the grid of each scale but the first, ``(R, N - 1, d)``.
            condition: The result of ``condition``.
            schedule: Grids of the tokens.

        Returns:
                Logits of 0 and of 1 for every bit, ``(R, N, 2 d)``, float32.
        """
        lengths = torch.tensor(schedule.lengths, device=tokens.device)  # (scales,)
        scale_of = torch.repeat_interleave(torch.arange(len(lengths), device=tokens.device), lengths)
        embedded = torch.cat(
            [condition["start"], self.word_embed(tokens.to(self.word_embed.weight))], dim=1
        )  # (R, N, C)
        hidden = embedded + self.scale_embed(scale_of)  # (R, N, C)
        memory = MaskedAttention(scale_of[:, None] >= scale_of)
        return self._logits(hidden, condition, self.rotation(schedule), memory, Streams(), NO_GUIDANCE)

    def _logits(
        self,
        hidden: Tensor,
        condition: Condition,
        rotation: Rotation,
        memory: Attention,
        streams: Streams,
        block_guidance: Mapping[int, float],
    ) -> Tensor:
        kept = streams.kept(len(hidden))
        for index, block in enumerate(self.blocks):
            of_block = Condition({name: condition[name][:, index] for name in ("ada", "keys", "values")})
            if "mask" in condition:
                of_block["mask"] = condition["mask"]
            ending = kept if index == len(self.blocks) - 1 else None
            hidden = block(index, hidden, of_block, rotation, memory, streams, ending)
            if index in block_guidance:
                hidden = guided(hidden, block_guidance[index]).repeat(2, 1, 1)
        head_ada = condition["head_ada"] if kept is None else condition["head_ada"][kept]
        scale, shift = head_ada.unsqueeze(2).unbind(1)  # (R, 1, C) each
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head((normed(hidden) * (1 + scale) + shift).to(self.head.weight)).float()

    @property
    def _stack(self) -> Iterable[InfinityBlock]:
        return cast(Iterable[InfinityBlock], self.blocks)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initialise as the authors do: blocks start close to the identity, logits close to zero."""
        deviation = math.sqrt(1 / self.config.width / 3)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=deviation)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for parameter in (self.start, self.text_pooling.query):
            nn.init.trunc_normal_(parameter, std=deviation)
        nn.init.trunc_normal_(self.unconditional, std=1.2)
        self.unconditional.div_(math.sqrt(self.config.text_channels))
        self.head.weight.mul_(0.02)
        self.head_ada.weight.mul_(1e-3)
        for block in self._stack:
            block.start_close_to_identity(self.config.depth)


def rotary_frequencies(head_width: int, device: torch.device) -> Tensor:
    """Return the rotary frequencies of one axis, which turns half of the head's pairs: ``(D / 4,)``."""
    half = head_width // 2
    return 10000.0 ** -(torch.arange(0, half, 2, device=device) / half)


def positions(grid: Grid, position_grid: Grid, device: torch.device) -> Tensor:
    """Return row and column of each cell, measured on the finest grid and rounded half to even: ``(L, 2)``."""
    rows, columns = (
        torch.round(torch.arange(number, device=device) * (finest / number))
        for number, finest in zip(grid, position_grid, strict=True)
    )
    return torch.cartesian_prod(rows, columns)  # (L, 2), row by row


def _check(width: int, num_heads: int, token_bits: int, patchify: bool) -> None:
    if width % (4 * num_heads):
        raise ValueError(f"a width of {width} does not split into {num_heads} heads of a multiple of 4")
    if patchify and token_bits % 4:
        raise ValueError(f"a token has {token_bits} bits, which are not those of 2 x 2 cells")
