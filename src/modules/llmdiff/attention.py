"""The additional cross-attention, and processors that install it beside the UNet's own and remove it again.

Shapes: B prompts, N image positions, L tokens, W width of the UNet's text phi(c), C width of the additional text.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.modules.backbones.base import text_projections

HIDDEN = -10000.0
"""Bias of a masked position, as in diffusers: its weight after the softmax is 0, and float16 can represent it."""


class PackedText(NamedTuple):
    """Text for both cross-attentions, ``(B, L, W)`` and ``(B, L, C)``, each with an additive mask ``(B, 1, L)``."""

    text: Tensor
    text_bias: Tensor
    context: Tensor
    context_bias: Tensor


def pack(text: Tensor, context: Tensor, text_mask: Tensor, context_mask: Tensor) -> Tensor:
    """Join both texts and their masks ``(B, L)`` to one tensor that pipelines can carry, ``(B, L, W + C + 2)``."""
    masks = torch.stack([text_mask, context_mask], dim=-1).to(text)  # (B, L, 2)
    return torch.cat([text, context.to(text), masks], dim=-1)


def unpack(packed: Tensor, text_width: int) -> PackedText:
    """Split a packed text into its parts.

    Raises:
        ValueError: If it is not packed.
    """
    if packed.shape[-1] < text_width + 2:
        raise ValueError(
            f"an LLMDiff adapter is installed, but the UNet got text of width {packed.shape[-1]}, which is not the "
            "adapter's; pass prompt_embeds from the adapter, or leave its context"
        )
    context = packed[..., text_width:-2]  # (B, L, C)
    text_bias, context_bias = ((1 - packed[..., None, :, index]) * HIDDEN for index in (-2, -1))  # (B, 1, L) each
    return PackedText(packed[..., :text_width], text_bias, context, context_bias)


class AdditionalAttention(nn.Module):
    """The new cross-attention of one layer (q, k, v, out), and the weights a, b of the new and the original one.

    Args:
        original: The layer's own cross-attention, which gives shapes and initial queries.
        width: Width C of the text that keys and values are projected from.
        branch_init: ``zero_output`` starts the output projection at 0 and a2 at 1, ``zero_weight`` starts a2 at 0.
    """

    def __init__(self, original: Attention, width: int, branch_init: str) -> None:
        super().__init__()
        # A LoRA wraps the layer that holds the weight.
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
        """The weight a1 e^b1 of the original attention."""
        return self.a1 * self.b1.exp()

    @property
    def additional_weight(self) -> Tensor:
        """The weight a2 e^b2 of the additional attention."""
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


class OriginalProcessor:
    """Gives a layer's own cross-attention, for instance in a ControlNet, its part phi(c) of a packed text.

    It is no ``nn.Module``, because the UNet would count its parameters among its own.

    Args:
        processor: The layer's own processor, which computes the attention.
        text_width: Width W of the UNet's text.
    """

    def __init__(self, processor: Any, text_width: int) -> None:
        self.processor, self.text_width = processor, text_width

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend to phi(c) as the layer does; ``attention_mask`` is added to the mask in the packed text."""
        assert encoder_hidden_states is not None
        packed = unpack(encoder_hidden_states, self.text_width)
        return self.original(attn, hidden_states, packed, attention_mask)

    def original(self, attn: Attention, hidden: Tensor, packed: PackedText, attention_mask: Tensor | None) -> Tensor:
        """Compute the output of the original attention, ``(B, N, *)``."""
        bias = packed.text_bias if attention_mask is None else packed.text_bias + attention_mask
        return self.processor(attn, hidden, packed.text.to(hidden.dtype), bias.to(hidden.dtype))


class JointProcessor(OriginalProcessor):
    """Adds both cross-attentions: f = attn(q', k'(phi(c)), v'(phi(c))) a1 e^b1 + attn(q, k(c), v(c)) a2 e^b2.

    Args:
        processor: The layer's own processor, which computes the primed, original attention.
        text_width: Width W of the UNet's text.
        additional: The new attention.
        strength: 0 for the original attention alone, 1 for the weights as learnt, between them a mixture.
    """

    def __init__(self, processor: Any, text_width: int, additional: AdditionalAttention, strength: float = 1.0) -> None:
        super().__init__(processor, text_width)
        self.additional, self.strength = additional, strength

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend with both, ``(B, N, *) -> (B, N, *)``."""
        assert encoder_hidden_states is not None
        packed = unpack(encoder_hidden_states, self.text_width)
        original = self.original(attn, hidden_states, packed, attention_mask)
        # Under ``key_value=phi`` the packed text has no c, and phi(c) serves both.
        context = packed.context if packed.context.shape[-1] else packed.text
        bias = packed.context_bias if attention_mask is None else packed.context_bias + attention_mask
        additional = self.additional(hidden_states, context, bias)
        kept = 1 + self.strength * (self.additional.original_weight - 1)  # 1 at strength 0, a1 e^b1 at 1
        joined = original * kept + additional * (self.strength * self.additional.additional_weight)
        return joined.to(hidden_states.dtype)


def cross_attentions(unet: nn.Module) -> dict[str, Attention]:
    """Return every cross-attention layer by its name.

    Raises:
        ValueError: If projections are fused, or a layer's processor holds weights, as an IP-Adapter's does.
    """
    text_projections(unet)
    found = {name: module for name, module in unet.named_modules() if name.endswith("attn2")}
    for name, attention in found.items():
        if isinstance(attention.processor, nn.Module):
            raise ValueError(
                f"{name} already has a {type(attention.processor).__name__} with weights of its own; unload it first"
            )
        if isinstance(attention.processor, OriginalProcessor):
            raise ValueError("this UNet already has an LLMDiff adapter installed; leave that context first")
    return found


@contextlib.contextmanager
def processors_set(processors: Mapping[Attention, OriginalProcessor]) -> Iterator[None]:
    """While active, use these processors in place of the layers' own."""
    before = {attention: attention.processor for attention in processors}
    try:
        for attention, processor in processors.items():
            attention.set_processor(processor)
        yield
    finally:
        for attention, stock in before.items():
            attention.set_processor(stock)
