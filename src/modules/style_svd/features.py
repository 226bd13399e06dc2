"""Principal feature blending: swap what dominates a feature map, keep the rest (arXiv 2507.04482, Eq. 5 and 6)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def decay_weights(alpha: float, channels: int) -> Tensor:
    """Weights ``e^(-alpha i)`` of the singular directions, the dominant one first, float64 ``(channels,)``.

    Args:
        alpha: 0 keeps all directions (replacement of the whole feature), infinity only the dominant one.
        channels: Of the feature.

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
    """Ones for the first ``top_k`` singular directions, zeros for the rest, float64 ``(channels,)``.

    Raises:
        ValueError: If there are not that many.
    """
    if not 1 <= top_k <= channels:
        raise ValueError(f"top_k is {top_k}; give a number of components from 1 to {channels}, the feature's channels")
    return (torch.arange(channels) < top_k).double()


@dataclass(frozen=True)
class PrincipalFeatures:
    """Each sample of a batch with its singular directions weighted.

    Attributes:
        emphasised: ``U diag(weights) S V^T``, ``(B, C, H, W)``, of the feature's dtype.
        singular_values: Of each sample's channels x positions matrix, descending, ``(B, C)``, float64.
    """

    emphasised: Tensor
    singular_values: Tensor

    @property
    def gaps(self) -> Tensor:
        """How far the second singular value lies below the first, relatively, ``(B,)``."""
        return 1 - self.singular_values[:, 1] / self.singular_values[:, 0]

    def spectrum(self, sample: int) -> dict[str, float | list[float]]:
        """What to write down of one sample, without the digits that are rounding."""
        values = [round(value, 6) for value in self.singular_values[sample].tolist()]
        return {"singular_values": values, "gap": round(float(self.gaps[sample]), 6)}


def principal_features(feature: Tensor, weights: Tensor) -> PrincipalFeatures:
    """Weight the singular directions of each sample.

    With ``U`` from the C x C Gram matrix this is ``(U diag(weights) U^T) X``: no decomposition of the long side. The
    Gram matrix squares the condition number, so it is formed and decomposed in float64, on the CPU, where every
    machine gives the same answer.

    Args:
        feature: ``(B, C, H, W)``; positions are not centred.
        weights: ``(C,)``, dominant direction first.
    """
    exact = feature.detach().flatten(2).cpu().double()
    squares, ascending = torch.linalg.eigh(exact @ exact.mT)
    basis = ascending.flip(-1)
    projection = (basis * weights.to(basis)) @ basis.mT
    flat = feature.float().flatten(2)
    emphasised = (projection.to(flat) @ flat).view_as(feature).to(feature.dtype)
    return PrincipalFeatures(emphasised, squares.flip(-1).clamp_min(0).sqrt())


def joined(parts: Sequence[PrincipalFeatures]) -> PrincipalFeatures:
    """The samples of several batches as one."""
    return PrincipalFeatures(
        torch.cat([part.emphasised for part in parts]), torch.cat([part.singular_values for part in parts])
    )


def blended_features(generated: Tensor, own: PrincipalFeatures, style: PrincipalFeatures) -> Tensor:
    """``Phi(style) + generated - Phi(generated)``, ``(B, C, H, W)``; ``own`` are those of ``generated``."""
    return style.emphasised.to(generated) + generated - own.emphasised
