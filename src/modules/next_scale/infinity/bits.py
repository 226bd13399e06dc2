"""Binary spherical quantisation on a pyramid of grids: features to bits and back (Infinity, arXiv 2412.04431).

Shapes: B images, d bits of a cell, h x w cells of one scale, H x W cells of the last scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from src.modules.next_scale.schedule import Grid


def bit_codes(bits: Tensor) -> Tensor:
    """Map bits to corners of the unit sphere's hypercube, ``(2 bits - 1) / sqrt(d)``: ``(B, d, h, w)``, float32."""
    return (2 * bits.float() - 1) / bits.shape[1] ** 0.5


class _NearestCode(torch.autograd.Function):
    """Rounds to the nearest corner of the hypercube; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return bit_codes(features > 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def resized(codes: Tensor, grid: Sequence[int]) -> Tensor:
    """Resize bilinearly, without aligned corners or antialiasing; the right size is left alone."""
    if codes.shape[-2:] == tuple(grid):
        return codes
    return interpolate(codes, size=tuple(grid), mode="bilinear", align_corners=False)


def pooled(features: Tensor, grid: Sequence[int]) -> Tensor:
    """Average over the area of each cell of a coarser grid; the right size is left alone."""
    return features if features.shape[-2:] == tuple(grid) else interpolate(features, size=tuple(grid), mode="area")


@dataclass(frozen=True)
class Quantised:
    """An image in bits.

    Attributes:
        bits: Bits of each scale, ``(B, d, h, w)``, boolean.
        features: Sum ``F_s`` of all upsampled codes up to each scale, ``(B, d, H, W)``; the gradient of quantisation is
            the identity.
    """

    bits: list[Tensor]
    features: list[Tensor]


def quantise(features: Tensor, grids: Sequence[Grid], flips: Sequence[Tensor] = ()) -> Quantised:
    """Quantise features scale by scale: the bits of each scale describe the residual that earlier scales left.

    Args:
        features: Features of the encoder, ``(B, d, H, W)``; a residual of exactly zero becomes bit 0.
        grids: Grids of the scales, coarse to fine; a prefix of the schedule is enough, since nothing depends on later
            scales.
        flips: For each of the first scales, which bits enter the running sum inverted, boolean ``(B, d, h, w)``. The
            returned ``bits`` are not inverted, and those of later scales make up for the errors (self-correction).
    """
    residual, running = features, torch.zeros_like(features)
    found = Quantised([], [])
    for index, grid in enumerate(grids):
        target = pooled(residual, grid)  # (B, d, h, w)
        codes = _NearestCode.apply(target)  # R_s, (B, d, h, w)
        found.bits.append(target > 0)
        if index < len(flips):
            codes = torch.where(flips[index], -codes, codes)
        running = running + resized(codes, features.shape[-2:])  # F_s, (B, d, H, W)
        residual = features - running
        found.features.append(running)
    return found
