"""Choosing codes from logits: guidance, truncation, and draws whose noise two paths can share."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None
"""One generator for the whole batch, one for each image, or None for torch's global one."""


def guided(logits: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance on logits whose first half of rows is conditional: ``g l_c + (1 - g) l_u``."""
    conditional, unconditional = logits.chunk(2)
    return guidance_scale * conditional + (1 - guidance_scale) * unconditional


def truncated(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Set the logits of unlikely choices to minus infinity (top-k and nucleus sampling).

    Args:
        logits: Scores of K choices, ``(..., K)``.
        top_k: Keep the k best, ties included; 0 keeps all.
        top_p: Drop the least likely choices while their probabilities sum to at most ``1 - top_p``; 0 keeps all.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if 0 < top_p < 1:
        ascending, order = logits.sort(dim=-1)  # (..., K) each
        unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        unlikely[..., -1] = False  # the likeliest choice always stays
        logits = logits.masked_fill(torch.zeros_like(unlikely).scatter(-1, order, unlikely), -torch.inf)
    return logits


def exponential_noise(images: int, shape: tuple[int, int], generators: Generators, like: Tensor) -> Tensor:
    """Draw the noise of one pass from Exp(1): one number for each choice of each draw, ``(images, *shape)``.

    ``draw`` takes the choice where probability / noise is largest, as ``torch.multinomial`` does. Two paths that share
    the noise of their image then draw differently only as often as their probabilities demand.

    Raises:
        ValueError: If there is not one generator for each image.
    """
    if generators is None or isinstance(generators, torch.Generator):
        device = generators.device if generators is not None else like.device
        noise = torch.empty(images, *shape, device=device).exponential_(generator=generators)  # (images, N, K)
        return noise.to(like.device)
    if len(generators) != images:
        raise ValueError(f"{len(generators)} generators were given for {images} images; give one, or one for each")
    each = [torch.empty(shape, device=g.device).exponential_(generator=g).to(like.device) for g in generators]
    return torch.stack(each)


def derived(generators: Generators, count: int) -> list[Generators]:
    """Make ``count`` further generators for each given one, seeded from its state, which does not advance.

    Torch's global generator has no children: paths that draw with it take turns.
    """
    if generators is None:
        return [None] * count
    if isinstance(generators, torch.Generator):
        return list(_children(generators, count))
    return list(zip(*(_children(generator, count) for generator in generators), strict=True))


def _children(generator: torch.Generator, count: int) -> list[torch.Generator]:
    device = generator.device
    seeds = torch.randint(2**63 - 1, (count,), generator=generator.clone_state(), device=device)
    return [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw the index of one choice, ``(..., K) -> (...)``; ``noise`` is that of ``exponential_noise``."""
    return (logits.float().softmax(-1) / noise).argmax(-1)
