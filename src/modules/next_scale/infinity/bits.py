"""Binary spherical quantisation on a pyramid of grids: features to bits and back (Infinity, arXiv 2412.04431).

Shapes: B images, d bits of a cell, h x w cells of one scale, H x W cells of the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from src.modules.next_scale.schedule import Grid


def bit_codes(bits: Tensor) -> Tensor:
    """Corners of the hypercube inscribed in the unit sphere, ``(2 bits - 1) / sqrt(d)``: ``(B, d, h, w)``, float32."""
    return (2 * bits.float() - 1) / bits.shape[1] ** 0.5


class _NearestCode(torch.autograd.Function):
    """The nearest corner of the hypercube; its gradient is handed straight through."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return bit_codes(features > 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def resized(codes: Tensor, grid: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned, no antialiasing; untouched where the size is right."""
    if codes.shape[-2:] == tuple(grid):
        return codes
    return interpolate(codes, size=tuple(grid), mode="bilinear", align_corners=False)


def pooled(features: Tensor, grid: Sequence[int]) -> Tensor:
    """Mean over the area of each cell of a coarser grid; untouched where the size is right."""
    return features if features.shape[-2:] == tuple(grid) else interpolate(features, size=tuple(grid), mode="area")


@dataclass(frozen=True)
class Quantised:
    """An image in bits.

    Attributes:
        bits: For each scale, ``(B, d, h, w)``, boolean.
        features: For each scale, the sum of all upsampled codes so far, ``(B, d, H, W)``; differentiable, the
            quantiser's gradient is the identity.
    """

    bits: list[Tensor]
    features: list[Tensor]


def quantise(features: Tensor, grids: Sequence[Grid], flips: Sequence[Tensor] = ()) -> Quantised:
    """Describe features scale by scale: each says in bits what is left of them on its grid.

    Args:
        features: Of the encoder, ``(B, d, H, W)``; a residual of exactly zero is bit 0.
        grids: Coarse to fine; a prefix of the schedule will do, nothing depends on later scales.
        flips: For the first scales, bits that are handed on inverted, boolean ``(B, d, h, w)``. What is returned as
            ``bits`` stays what it should have been, so later scales tell how to mend it (bitwise self-correction).
    """
    residual, running = features, torch.zeros_like(features)
    found = Quantised([], [])
    for index, grid in enumerate(grids):
        target = pooled(residual, grid)
        codes = _NearestCode.apply(target)
        found.bits.append(target > 0)
        if index < len(flips):
            codes = torch.where(flips[index], -codes, codes)
        running = running + resized(codes, features.shape[-2:])
        residual = features - running
        found.features.append(running)
    return found
