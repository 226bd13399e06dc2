"""Principal feature blending: swap what dominates a feature map, keep the rest (arXiv 2507.04482, Eq. 5 and 6)."""

import math

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


def singular_values(feature: Tensor) -> Tensor:
    """Of each sample's channels x positions matrix, descending: ``(B, C, H, W) -> (B, C)``, float64."""
    return torch.linalg.eigvalsh(_gram(feature)).flip(-1).clamp_min(0).sqrt()


def emphasised(feature: Tensor, weights: Tensor) -> Tensor:
    """Weight the singular directions of each sample: ``U diag(weights) S V^T``, shape and dtype as they came.

    With ``U`` from the C x C Gram matrix this is ``(U diag(weights) U^T) X``: no decomposition of the long side. The
    Gram matrix squares the condition number, so it is formed and decomposed in float64, on the CPU, where every
    machine gives the same answer.

    Args:
        feature: ``(B, C, H, W)``; positions are not centred.
        weights: ``(C,)``, dominant direction first.
    """
    _, descending = torch.linalg.eigh(_gram(feature))
    basis = descending.flip(-1)
    projection = (basis * weights.to(basis)) @ basis.mT
    flat = feature.float().flatten(2)
    return (projection.to(flat) @ flat).view_as(feature).to(feature.dtype)


def _gram(feature: Tensor) -> Tensor:
    flat = feature.detach().flatten(2).cpu().double()
    return flat @ flat.mT


def blended_features(generated: Tensor, style: Tensor, weights: Tensor) -> Tensor:
    """``Phi(style) + generated - Phi(generated)``, all ``(B, C, H, W)``."""
    return emphasised(style, weights) + generated - emphasised(generated, weights)
