"""Scores of unit embeddings. Pure functions: one number per image, so that statistics come later."""

import torch
from torch import Tensor


def clip_t(images: Tensor, texts: Tensor) -> Tensor:
    """Cosine of each image with its own text, raw (neither scaled nor clamped).

    Args:
        images: Unit embeddings ``(N, D)``.
        texts: Unit embeddings ``(N, D)``, or ``(1, D)`` for one text to all.

    Returns:
        Shape ``(N,)``.

    Raises:
        ValueError: If the numbers of images and texts do not fit.
    """
    if len(texts) not in (1, len(images)):
        raise ValueError(f"{len(images)} images need as many texts, or one, got {len(texts)}")
    return (images * texts).sum(-1)


def pair_mean(generated: Tensor, references: Tensor) -> Tensor:
    """Mean cosine of each generated image with all references (CLIP-I, DINO of DreamBooth, arXiv 2208.12242).

    The mean of the result is the mean over all pairs. It is not the cosine of two mean embeddings, which is larger.

    Args:
        generated: Unit embeddings ``(N, D)``.
        references: Unit embeddings ``(M, D)``.

    Returns:
        Shape ``(N,)``.
    """
    return generated @ references.mean(0)


def within_set(embeddings: Tensor) -> Tensor:
    """Mean cosine of each image with all the others of its set; the mean of the result is the mean over pairs i < j.

    Args:
        embeddings: Unit embeddings ``(M, D)``, ``M`` at least 2.

    Returns:
        Shape ``(M,)``.

    Raises:
        ValueError: If there is only one image.
    """
    number = len(embeddings)
    if number < 2:
        raise ValueError(f"the similarity within a set needs at least two images, got {number}")
    return ((embeddings @ embeddings.sum(0)) - (embeddings**2).sum(-1)) / (number - 1)


def harmonic(first: Tensor, second: Tensor) -> Tensor:
    """Harmonic mean ``2ab / (a + b)``, element by element; 0 where either is not positive."""
    positive = (first > 0) & (second > 0)
    return torch.where(positive, 2 * first * second / (first + second).where(positive, torch.ones_like(first)), 0.0)
