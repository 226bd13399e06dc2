"""Attention processors that put an additional cross-attention beside a stock UNet's own, and take it away again.

Shapes: B prompts, N image positions, L tokens, W width of the UNet's text.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from src.modules.backbone import cross_attention_projections
from src.modules.llm.cross_attention import AdditionalAttention, PackedText, unpack


class OriginalProcessor:
    """Gives an original cross-attention, of a ControlNet for instance, its part of a packed text.

    A plain object: were it a module, the UNet would count it among its own.

    Args:
        processor: That of the layer, which computes the attention.
        text_width: W.
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
        """Attend as the original layer does to its text; ``attention_mask`` adds to the mask in the packed text."""
        assert encoder_hidden_states is not None
        packed = unpack(encoder_hidden_states, self.text_width)
        return self.original(attn, hidden_states, packed, attention_mask)

    def original(self, attn: Attention, hidden: Tensor, packed: PackedText, attention_mask: Tensor | None) -> Tensor:
        """The original attention's output."""
        bias = packed.text_bias if attention_mask is None else packed.text_bias + attention_mask
        return self.processor(attn, hidden, packed.text.to(hidden.dtype), bias.to(hidden.dtype))


class JointProcessor(OriginalProcessor):
    """Both cross-attentions: f = attn(q', k'(phi(c)), v'(phi(c))) a1 e^b1 + attn(q, k(c), v(c)) a2 e^b2.

    Args:
        processor: See ``OriginalProcessor``.
        text_width: W.
        additional: The other attention.
        strength: 0 for the original alone, 1 for the weights as they were learnt, and in between.
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
        """Attend with both."""
        assert encoder_hidden_states is not None
        packed = unpack(encoder_hidden_states, self.text_width)
        original = self.original(attn, hidden_states, packed, attention_mask)
        # phi(c) serves both where the packed text has no other.
        context = packed.context if packed.context.shape[-1] else packed.text
        bias = packed.context_bias if attention_mask is None else packed.context_bias + attention_mask
        additional = self.additional(hidden_states, context, bias)
        kept = 1 + self.strength * (self.additional.original_weight - 1)
        joined = original * kept + additional * (self.strength * self.additional.additional_weight)
        return joined.to(hidden_states.dtype)


def cross_attentions(unet: nn.Module) -> dict[str, Attention]:
    """Every cross-attention layer, by name.

    Raises:
        ValueError: If projections are fused, or a layer's processor holds weights, as an IP-Adapter's does.
    """
    cross_attention_projections(unet)
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
    """While active, these layers have these processors."""
    before = {attention: attention.processor for attention in processors}
    try:
        for attention, processor in processors.items():
            attention.set_processor(processor)
        yield
    finally:
        for attention, stock in before.items():
            attention.set_processor(stock)
