"""The additional cross-attention, and the packed text that it shares with the UNet's own.

Text reaches every layer as one packed tensor, so that it survives guidance, checkpointing and several processes, and
stock pipelines take it as prompt_embeds: ``[phi(c), context, seen by the original, seen by the additional]`` on the
last axis, the last two being 1 at visible positions and 0 elsewhere.

Shapes: B prompts, N image positions, L tokens, H heads, W width of the UNet's text, C width of the additional text.
"""

from typing import NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

HIDDEN = -10000.0
"""Bias of a hidden position, as diffusers has it: exactly no weight after the softmax, and within half precision."""


class PackedText(NamedTuple):
    """Text for both cross-attentions, with additive masks ``(B, 1, L)``."""

    text: Tensor
    text_bias: Tensor
    context: Tensor
    context_bias: Tensor


def pack(text: Tensor, context: Tensor, text_mask: Tensor, context_mask: Tensor) -> Tensor:
    """Join ``(B, L, W)``, ``(B, L, C)`` and two masks ``(B, L)`` to ``(B, L, W + C + 2)``."""
    masks = torch.stack([text_mask, context_mask], dim=-1).to(text)
    return torch.cat([text, context.to(text), masks], dim=-1)


def unpack(packed: Tensor, text_width: int) -> PackedText:
    """The parts of a packed text.

    Raises:
        ValueError: If it is not packed.
    """
    if packed.shape[-1] < text_width + 2:
        raise ValueError(
            f"an LLMDiff adapter is installed, but the UNet got text of width {packed.shape[-1]}, which is not the "
            "adapter's; pass prompt_embeds from the adapter, or leave its context"
        )
    context = packed[..., text_width:-2]
    text_bias, context_bias = ((1 - packed[..., None, :, index]) * HIDDEN for index in (-2, -1))
    return PackedText(packed[..., :text_width], text_bias, context, context_bias)


class AdditionalAttention(nn.Module):
    """A cross-attention of its own beside an original one, and the weights of both.

    Args:
        original: Gives shapes and the initial queries.
        width: C, of the text that keys and values are projected from.
        branch_init: ``zero_output``: the output projection starts at zero and a2 at 1; ``zero_weight``: a2 at zero.
    """

    def __init__(self, original: Attention, width: int, branch_init: str) -> None:
        super().__init__()
        # A LoRA wraps the layer whose weight this is.
        queries = getattr(original.to_q, "base_layer", original.to_q)
        inner, self.heads = queries.out_features, original.heads
        self.to_q = nn.Linear(queries.in_features, inner, bias=queries.bias is not None)
        self.to_q.load_state_dict(queries.state_dict())
        self.to_k, self.to_v = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.to_out = nn.Linear(inner, queries.in_features)
        nn.init.zeros_(self.to_out.bias)
        if branch_init == "zero_output":
            nn.init.zeros_(self.to_out.weight)
        self.a1, self.b1 = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        self.a2, self.b2 = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        if branch_init == "zero_weight":
            nn.init.zeros_(self.a2)

    @property
    def original_weight(self) -> Tensor:
        """a1 e^b1."""
        return self.a1 * self.b1.exp()

    @property
    def additional_weight(self) -> Tensor:
        """a2 e^b2."""
        return self.a2 * self.b2.exp()

    def forward(self, hidden: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        """Attend from image features ``(B, N, *)`` to ``context`` ``(B, L, C)`` under ``bias`` ``(B, 1, L)``."""
        hidden, context = hidden.to(self.to_q.weight.dtype), context.to(self.to_k.weight.dtype)
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(hidden), self.to_k(context), self.to_v(context))
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[:, None].to(query.dtype))
        return self.to_out(attended.transpose(1, 2).flatten(2))
