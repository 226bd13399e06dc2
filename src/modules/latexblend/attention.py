"""Attention of the layers of a denoiser: scores, maps that are recorded, and the grid of a map.

Shapes: B prompts, H heads, N cells of a feature map, L tokens, D width of keys.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

MAX_CELLS = 32 * 32
"""Most cells N of a feature map that counts: larger ones add little and cost the most memory."""


def scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Compute scaled products of queries ``(B, N, D)`` with keys ``(B, L, D)``, ``(B, H, N, L)``."""
    split_query, split_key = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key))
    return split_query @ split_key.transpose(-1, -2) / math.sqrt(split_query.shape[-1])


def refuse_normed(denoiser: nn.Module, **asked: object) -> None:
    """Refuse what reckons with products of queries and keys, where a model norms both first.

    Args:
        denoiser: The denoiser.
        asked: Name of what was asked for to what was given; False, None and the like ask for nothing.

    Raises:
        ValueError: If something was.
    """
    layers = (module for name, module in denoiser.named_modules() if name.endswith("attn2"))
    named = next((name for name, given in asked.items() if given), None)
    if named and any(getattr(layer, "norm_k", None) is not None for layer in layers):
        raise ValueError(
            f"{named} reckons with queries and keys of cross-attention, which a {type(denoiser).__name__} norms first; "
            "leave it out"
        )


@contextlib.contextmanager
def recorded_attention(unet: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While active, record the attention map ``(B, N, L)`` of each cross-attention layer in every forward pass.

    Maps are averaged over heads and carry a gradient; they are computed in addition to the layer's own attention.
    """
    queries: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}

    def keep_query(name: str):
        return lambda module, inputs, query: queries.update({name: query})

    def keep_map(name: str, heads: int):
        def hook(module: nn.Module, inputs: tuple, key: Tensor) -> None:
            query = queries.pop(name)
            if query.shape[1] <= MAX_CELLS:
                maps[name] = scores(query, key, heads).softmax(-1).mean(1)

        return hook

    layers = {name: module for name, module in unet.named_modules() if name.endswith("attn2")}
    # Stock attention computes queries before keys.
    handles = [layer.to_q.register_forward_hook(keep_query(name)) for name, layer in layers.items()]
    handles += [layer.to_k.register_forward_hook(keep_map(name, layer.heads)) for name, layer in layers.items()]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def attention_grid(cells: int, size: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a map of so many cells, from the size of the latents."""
    factor = round(math.sqrt(size[0] * size[1] / cells))
    return math.ceil(size[0] / factor), math.ceil(size[1] / factor)
