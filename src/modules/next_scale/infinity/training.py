"""Bitwise self-correction: Infinity learns to mend bits that were flipped in its input (arXiv 2412.04431, section 3.4).

Shapes: B images, N tokens of all scales, d bits of a cell, D bits of a token, H x W cells of the last scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from src.modules.next_scale.infinity.bits import quantise, resized
from src.modules.next_scale.infinity.sampling import cell_grids, token_sequence
from src.modules.next_scale.schedule import ScaleSchedule


@dataclass(frozen=True)
class BitLesson:
    """Inputs and targets of one batch, for teacher forcing.

    Attributes:
        tokens: Input of each scale but the first: the running sum of earlier scales on its grid, ``(B, N - 1, D)``.
        bits: Target bits of all scales, ``(B, N, D)``, boolean.
    """

    tokens: Tensor
    bits: Tensor


def bit_lesson(
    features: Tensor, schedule: ScaleSchedule, patchify: bool = False, flips: Sequence[Tensor] = ()
) -> BitLesson:
    """Quantise features with some bits flipped; the targets are the bits that are right after this flipped history.

    Args:
        features: Features of the tokenizer's encoder, ``(B, d, H, W)``.
        schedule: Grids of the tokens.
        patchify: Whether a token is 2 x 2 cells.
        flips: Which bits to flip, from ``random_flips``; empty to flip none.
    """
    grids = cell_grids(schedule, patchify)
    found = quantise(features, grids, flips)
    sums = [resized(feature, grid) for feature, grid in zip(found.features[:-1], grids[1:], strict=True)]
    return BitLesson(
        torch.cat([token_sequence(cells, patchify) for cells in sums], dim=1),
        torch.cat([token_sequence(bits.float(), patchify) for bits in found.bits], dim=1) > 0.5,
    )


def random_flips(
    features: Tensor, schedule: ScaleSchedule, patchify: bool, strength: float, generator: torch.Generator
) -> list[Tensor]:
    """Draw which bits to flip, ``(B, d, h, w)`` for each scale, with a probability that is drawn in whole percents.

    Args:
        features: Features of the tokenizer's encoder, ``(B, d, H, W)``.
        schedule: Grids of the tokens.
        patchify: Whether a token is 2 x 2 cells.
        strength: Largest probability of a flip.
        generator: Generator of all draws.

    Raises:
        ValueError: If ``strength`` is not a probability.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"the strength of bit flips is {strength}; give a probability from 0 to 1")
    flips = []
    for grid in cell_grids(schedule, patchify):
        share = torch.randint(round(100 * strength) + 1, (), generator=generator) / 100
        drawn = torch.rand(*features.shape[:2], *grid, generator=generator)
        flips.append((drawn < share).to(features.device))  # (B, d, h, w)
    return flips


def bit_losses(logits: Tensor, bits: Tensor) -> Tensor:
    """Cross-entropy of each token, averaged over its bits: logits ``(B, N, 2 D)``, bits ``(B, N, D)`` to ``(B, N)``."""
    pairs = logits.float().unflatten(-1, (-1, 2))  # (B, N, D, 2): logits of 0 and of 1
    return cross_entropy(pairs.flatten(0, 2), bits.long().flatten(), reduction="none").view(bits.shape).mean(-1)


def token_weights(schedule: ScaleSchedule, by_scale: bool) -> Tensor:
    """Weights of all tokens' losses, ``(N,)``, of sum 1: equal, or by ``1 / sqrt(h w)`` of the scale's h x w tokens."""
    lengths = torch.tensor(schedule.lengths, dtype=torch.float32)
    weights = (lengths**-0.5 if by_scale else torch.ones_like(lengths)).repeat_interleave(lengths.long())
    return weights / weights.sum()
