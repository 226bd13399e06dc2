"""Scores of unit embeddings. Pure functions: one number per image, so that statistics come later."""

from dataclasses import dataclass

import torch
from torch import Tensor


def clip_t(images: Tensor, texts: Tensor, scale: float = 1.0, clamp: bool = False) -> Tensor:
    """Cosine of each image with its own text, by default raw (neither scaled nor clamped).

    CLIPScore (arXiv 2104.08718) has ``scale=2.5`` and ``clamp=True``: 0.75 there is 0.30 here.

    Args:
        images: Unit embeddings ``(N, D)``.
        texts: Unit embeddings ``(N, D)``, or ``(1, D)`` for one text to all.
        scale: Factor.
        clamp: Whether a negative cosine counts as 0, image by image and not in the mean.

    Returns:
        Shape ``(N,)``.

    Raises:
        ValueError: If the numbers of images and texts do not fit.
    """
    if len(texts) not in (1, len(images)):
        raise ValueError(f"{len(images)} images need as many texts, or one, got {len(texts)}")
    cosines = (images * texts).sum(-1)
    return scale * (cosines.clamp(min=0) if clamp else cosines)


def own_reference(generated: Tensor, references: Tensor) -> Tensor:
    """Cosine of each generated image with its own reference.

    Args:
        generated: Unit embeddings ``(N, D)``.
        references: Unit embeddings ``(N, D)``, or ``(1, D)`` for one reference to all.

    Returns:
        Shape ``(N,)``.

    Raises:
        ValueError: If the numbers do not fit.
    """
    if len(references) not in (1, len(generated)):
        raise ValueError(f"{len(generated)} images need as many references, or one, got {len(references)}")
    return (generated * references).sum(-1)


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


def diversity(embeddings: Tensor) -> Tensor:
    """One minus the mean cosine of each image with all the others of its set; higher is more varied.

    Args:
        embeddings: Unit embeddings ``(M, D)``, ``M`` at least 2.

    Returns:
        Shape ``(M,)``.

    Raises:
        ValueError: If there is only one image.
    """
    return 1 - within_set(embeddings)


@dataclass(frozen=True)
class Copies:
    """Generated images that are nearer to a reference than the references are to each other.

    Attributes:
        ceiling: Highest cosine of two references.
        nearest: Highest cosine of each generated image with a reference, ``(N,)``.
    """

    ceiling: float
    nearest: Tensor

    @property
    def above(self) -> Tensor:
        """Whether each image is above the ceiling, ``(N,)``."""
        return self.nearest > self.ceiling


def copies(generated: Tensor, references: Tensor) -> Copies:
    """Raise the alarm where an image is nearer to a reference than any two references are to each other.

    Args:
        generated: Unit embeddings ``(N, D)``.
        references: Unit embeddings ``(M, D)`` of different pictures, ``M`` at least 2.

    Raises:
        ValueError: If there is only one reference, and so no ceiling.
    """
    number = len(references)
    if number < 2:
        raise ValueError(f"the ceiling is the similarity of two references, got {number}; add another picture")
    between = (references @ references.T)[~torch.eye(number, dtype=torch.bool)]
    return Copies(float(between.max()), (generated @ references.T).amax(-1))
