"""Two scores in one number. Which mean comes first matters in the third digit, so each order has its own name.

Published tables (arXiv 2507.04482) hold ``harmonic_of_means``. CLIP-T lives in 0.2 ... 0.35 and image scores in 0.5 ...
0.8, so that CLIP-T decides nearly alone; the two variants at the end put both on one range. They are ours.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def harmonic(first: Tensor, second: Tensor) -> Tensor:
    """Harmonic mean ``2ab / (a + b)``, element by element; 0 where either is not positive."""
    positive = (first > 0) & (second > 0)
    return torch.where(positive, 2 * first * second / (first + second).where(positive, torch.ones_like(first)), 0.0)


def harmonic_of_means(means: Mapping[str, np.ndarray]) -> np.ndarray:
    """Harmonic of the mean scores of a set of images: the order of the published tables.

    Args:
        means: Two scores by name, as a bootstrap gives them: the means of each replicate, ``(num,)``.

    Returns:
        Shape ``(num,)``.
    """
    first, second = (torch.from_numpy(values) for values in means.values())
    return harmonic(first, second).numpy()


def harmonics_per_image(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    """Harmonic of each image; of positive scores their mean is at most ``harmonic_of_means``, which is concave.

    Args:
        first: One score per image, ``(N,)``.
        second: Another of the same images, ``(N,)``.

    Returns:
        Shape ``(N,)``.

    Raises:
        ValueError: If the numbers of scores differ.
    """
    if len(first) != len(second):
        raise ValueError(f"each image needs both scores, got {len(first)} and {len(second)}")
    return harmonic(*(torch.tensor(scores, dtype=torch.float64) for scores in (first, second))).numpy()


def min_max_harmonic(first: Tensor, second: Tensor) -> Tensor:
    """Ours: the harmonic after both scores were spread over 0 ... 1 by the worst and the best arm.

    Args:
        first: Mean score of each arm that is compared, ``(A,)``, two of them different.
        second: Another of the same arms, ``(A,)``.

    Returns:
        Shape ``(A,)``, 0 for an arm that is worst in either; it changes with the arms that are compared.

    Raises:
        ValueError: If all arms are equal in a score.
    """
    return harmonic(_min_max(first), _min_max(second))


def z_scored_harmonic(first: Tensor, second: Tensor) -> Tensor:
    """Ours: the harmonic of normal quantiles, 0.5 standing for the mean of the arms.

    Args:
        first: Mean score of each arm that is compared, ``(A,)``, two of them different.
        second: Another of the same arms, ``(A,)``.

    Returns:
        Shape ``(A,)``, in (0, 1); it changes with the arms that are compared.

    Raises:
        ValueError: If all arms are equal in a score.
    """
    return harmonic(torch.special.ndtr(_z_scores(first)), torch.special.ndtr(_z_scores(second)))


def _min_max(scores: Tensor) -> Tensor:
    _check_varied(scores)
    return (scores - scores.min()) / (scores.max() - scores.min())


def _z_scores(scores: Tensor) -> Tensor:
    _check_varied(scores)
    return (scores - scores.mean()) / scores.std(correction=0)


def _check_varied(scores: Tensor) -> None:
    if len(scores) < 2 or scores.min() == scores.max():
        raise ValueError(f"arms are put on one range by their differences, and these {len(scores)} do not differ")
