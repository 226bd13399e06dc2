"""Principal feature blending: replace what dominates a feature map, keep the rest (arXiv 2507.04482, Eq. 5 and 6).

Shapes: B samples, C channels, H x W positions. ``X = U S V^T`` is the singular value decomposition of a sample's
channels x positions matrix.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def decay_weights(alpha: float, channels: int) -> Tensor:
    """Return the weights ``e^(-alpha i)`` of the singular directions, the dominant one first, float64 ``(channels,)``.

    Args:
        alpha: Decay; 0 keeps all directions, which replaces the whole feature, infinity only the dominant one.
        channels: Number of channels C of the feature.

    Raises:
        ValueError: If ``alpha`` is negative.
    """
    if not alpha >= 0:
        raise ValueError(
            f"alpha is {alpha}; give a number from 0 (replace the feature) to inf (swap its first component)"
        )
    if math.isinf(alpha):
        return top_weights(1, channels)
    return torch.exp(-alpha * torch.arange(channels, dtype=torch.float64))


def top_weights(top_k: int, channels: int) -> Tensor:
    """Return ones for the first ``top_k`` singular directions and zeros for the rest, float64 ``(channels,)``.

    Raises:
        ValueError: If there are fewer directions than that.
    """
    if not 1 <= top_k <= channels:
        raise ValueError(f"top_k is {top_k}; give a number of components from 1 to {channels}, the feature's channels")
    return (torch.arange(channels) < top_k).double()


@dataclass(frozen=True)
class PrincipalFeatures:
    """The part of each sample that the weighted singular directions make up.

    Attributes:
        emphasised: ``Phi(X) = U diag(weights) S V^T``, ``(B, C, H, W)``, of the feature's dtype.
        singular_values: Singular values S of each sample, descending, ``(B, C)``, float64.
    """

    emphasised: Tensor
    singular_values: Tensor

    @property
    def gaps(self) -> Tensor:
        """Relative gap ``1 - s_1 / s_0`` of the two largest singular values, ``(B,)``."""
        return 1 - self.singular_values[:, 1] / self.singular_values[:, 0]

    def spectrum(self, sample: int) -> dict[str, float | list[float]]:
        """Return the singular values and the gap of one sample, rounded for a record."""
        values = [round(value, 6) for value in self.singular_values[sample].tolist()]
        return {"singular_values": values, "gap": round(float(self.gaps[sample]), 6)}


def principal_features(feature: Tensor, weights: Tensor) -> PrincipalFeatures:
    """Compute ``Phi(X)``, which weights the singular directions of each sample (Eq. 5).

    U also diagonalises the C x C Gram matrix ``X X^T``, and ``Phi(X) = (U diag(weights) U^T) X``, so the long side need
    not be decomposed. The Gram matrix squares the condition number: it is formed and decomposed in float64, and on the
    CPU, where every machine gives the same answer.

    Args:
        feature: Running sums of the samples, ``(B, C, H, W)``; the mean over positions is not subtracted.
        weights: Weights of the directions, the dominant one first, ``(C,)``.
    """
    exact = feature.detach().flatten(2).cpu().double()  # X, (B, C, H W)
    squares, ascending = torch.linalg.eigh(exact @ exact.mT)  # S^2 (B, C) and U (B, C, C), smallest first
    basis = ascending.flip(-1)
    projection = (basis * weights.to(basis)) @ basis.mT  # (B, C, C)
    flat = feature.float().flatten(2)  # (B, C, H W)
    emphasised = (projection.to(flat) @ flat).view_as(feature).to(feature.dtype)
    return PrincipalFeatures(emphasised, squares.flip(-1).clamp_min(0).sqrt())


def joined(parts: Sequence[PrincipalFeatures]) -> PrincipalFeatures:
    """Concatenate the samples of several batches."""
    return PrincipalFeatures(
        torch.cat([part.emphasised for part in parts]), torch.cat([part.singular_values for part in parts])
    )


def blended_features(generated: Tensor, own: PrincipalFeatures, style: PrincipalFeatures) -> Tensor:
    """Compute ``Phi(F_sty) + F_gen - Phi(F_gen)`` (Eq. 6), ``(B, C, H, W)``; ``own`` holds ``Phi(F_gen)``."""
    return style.emphasised.to(generated) + generated - own.emphasised
