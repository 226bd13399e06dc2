"""Residual vector quantisation on a pyramid of square grids: features to indices and back (VAR, Switti).

Shapes: B images, d channels of a cell, n x n cells of one scale, N x N cells of the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from src.modules.scale_ar.bsq import pooled


@dataclass(frozen=True)
class Quantised:
    """An image in indices of a codebook.

    Attributes:
        indices: For each scale, ``(B, n * n)``, row by row.
        features: For each scale, the sum of everything so far, ``(B, d, N, N)``.
    """

    indices: list[Tensor]
    features: list[Tensor]


class ResidualCodebook(nn.Module):
    """One table of codes for all scales, and four convolutions (phi) that scales of similar size share.

    Everything is computed in float32, whatever the weights: running sums add up many small corrections. And it is
    computed where the codes are: the table is asked for at every scale, when a tokenizer may wait in main memory.

    Args:
        num_codes: Rows of the table.
        channels: Of a code.
        smoothing: Share of the convolution in phi; the rest is the code itself.
    """

    def __init__(self, num_codes: int, channels: int, smoothing: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, channels)
        self.phi = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.smoothing = smoothing

    def codes(self, weights: Tensor) -> Tensor:
        """Rows of the table, ``(B, n * n) -> (B, d, n, n)``; or, of probabilities ``(B, n * n, V)``, their mean."""
        table = self.embedding.weight.to(weights.device, torch.float32)
        rows = weights @ table if weights.is_floating_point() else table[weights]
        return rows.mT.unflatten(-1, (round(rows.shape[1] ** 0.5), -1))

    def nearest(self, features: Tensor) -> Tensor:
        """Index of the nearest code for every cell, ``(B, d, n, n) -> (B, n * n)``."""
        cells, table = features.flatten(2).mT, self.embedding.weight.float()
        return (table.square().sum(-1) - 2 * cells @ table.mT).argmin(-1)

    def contribution(self, codes: Tensor, scale_index: int, num_scales: int, side: int) -> Tensor:
        """What a scale adds to the running sum: ``phi(bicubic(codes))``, ``(B, d, n, n) -> (B, d, side, side)``."""
        if codes.shape[-1] != side:
            codes = interpolate(codes, size=(side, side), mode="bicubic", align_corners=False)
        weight, bias = self.phi[phi_index(scale_index, num_scales, len(self.phi))].parameters()
        smoothed = conv2d(codes, weight.to(codes), bias.to(codes), padding=1)
        return torch.lerp(codes, smoothed, self.smoothing)

    def forward(self, features: Tensor, sides: Sequence[int], num_scales: int | None = None) -> Quantised:
        """Describe features scale by scale: each names the codes nearest to what is left of them on its grid.

        Args:
            features: Of the encoder, ``(B, d, N, N)``.
            sides: The whole schedule; which phi a scale has depends on its length.
            num_scales: Stop after so many; None for all.
        """
        residual, running = features.float(), torch.zeros_like(features, dtype=torch.float32)
        found = Quantised([], [])
        for index, side in enumerate(sides[:num_scales]):
            indices = self.nearest(pooled(residual, (side, side)))
            added = self.contribution(self.codes(indices), index, len(sides), features.shape[-1])
            residual, running = residual - added, running + added
            found.indices.append(indices)
            found.features.append(running)
        return found


def phi_index(scale_index: int, num_scales: int, count: int) -> int:
    """Which phi a scale has: the nearest of ``count`` ticks on the way from the first scale to the last."""
    ticks = np.linspace(1 / (3 * count), 1 - 1 / (3 * count), count)
    return int(np.abs(ticks - scale_index / (num_scales - 1)).argmin())
