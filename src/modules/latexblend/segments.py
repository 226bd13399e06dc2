"""Segments of an image from its self-attention: cells that attend to each other, and which concept each belongs to."""

import torch
from torch import Generator, Tensor

ROUNDS = 50
"""Most rounds of k-means; a few are enough for some hundred cells."""
TRIES = 10
"""Beginnings of k-means, the best of which counts."""


def segmented(attention: Tensor, number: int, seed: int = 0) -> Tensor:
    """Cut an image into segments by spectral clustering of how its cells attend to each other.

    Cells are points in the leading eigenvectors of ``D^-1/2 (A + A^T) D^-1/2``, scaled to unit length.

    Args:
        attention: Attention of each cell to each, ``(N, N)``, not negative.
        number: Number of segments, at most N.
        seed: Seeds k-means.

    Returns:
        The segment of each cell, ``(N,)``.
    """
    affinity = attention.double() + attention.double().T
    scale = affinity.sum(1).clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
    vectors = torch.linalg.eigh(scale[:, None] * affinity * scale).eigenvectors[:, -number:]
    points = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    generator = Generator().manual_seed(seed)
    tries = [_k_means(points, number, generator) for _ in range(TRIES)]
    return min(tries, key=lambda found: found[1])[0]


def _k_means(points: Tensor, number: int, generator: Generator) -> tuple[Tensor, float]:
    """Lloyd's rounds from centres that are drawn apart (k-means++): the centre of each point, and their distance."""
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    while len(centres) < number:
        apart = (torch.cdist(points, centres).amin(1) ** 2).clamp(min=1e-12)
        centres = torch.cat([centres, points[torch.multinomial(apart, 1, generator=generator)]])
    labels = torch.cdist(points, centres).argmin(1)
    for _ in range(ROUNDS):
        # A centre that lost all its points stays where it is.
        centres = torch.stack(
            [points[labels == at].mean(0) if (labels == at).any() else centres[at] for at in range(number)]
        )
        moved = torch.cdist(points, centres).argmin(1)
        if torch.equal(moved, labels):
            break
        labels = moved
    return labels, float((points - centres[labels]).square().sum())


def matched(segments: Tensor, maps: Tensor) -> Tensor:
    """Give each concept one segment, that where it is attended to most; the surest concept chooses first.

    Args:
        segments: Segment of each cell, ``(N,)``.
        maps: How much each cell attends to each concept, ``(K, N)`` in [0, 1].

    Returns:
        Masks of zeros and ones, ``(K, N)``; zeros where there are fewer segments than concepts.
    """
    found = segments.unique()
    members = (segments == found[:, None]).to(maps)  # (segments, N)
    means = maps @ members.T / members.sum(1)  # (K, segments)
    masks = torch.zeros_like(maps)
    for _ in range(min(means.shape)):
        concept, segment = divmod(int(means.argmax()), means.shape[1])
        masks[concept] = members[segment]
        means[concept, :] = means[:, segment] = -torch.inf
    return masks
