"""What became of several subjects in one image: as asked, swapped, mixed or omitted."""

import torch
from torch import Tensor

OUTCOMES = ("as_asked", "swapped", "mixed", "omitted")


def outcomes(found: Tensor, blended: Tensor | None = None) -> dict[str, Tensor]:
    """Sort images into four outcomes, of which each image has exactly one.

    - *mixed*: a region shows several subjects, or blends them, or one subject stands in several regions;
    - *omitted*: else, a subject is found nowhere;
    - *as asked*: else, each subject stands in its own region;
    - *swapped*: else. Each subject stands in one region then, and each region holds one, but not its own.

    Args:
        found: Whether each region shows each subject, bool ``(N, C, C)``: image, region, subject. The prompt puts
            subject ``i`` into region ``i``.
        blended: Whether each region shows parts of several subjects and none of them whole, bool ``(N, C)``; by default
            none does.

    Returns:
        By member of ``OUTCOMES``, bool ``(N,)``.

    Raises:
        ValueError: If there are not as many regions as subjects.
    """
    if found.ndim != 3 or found.shape[1] != found.shape[2]:
        raise ValueError(f"outcomes take (images, regions, subjects), each subject with its region, got {found.shape}")
    mixed = (found.sum(2) > 1).any(1) | (found.sum(1) > 1).any(1)
    if blended is not None:
        mixed |= blended.any(1)
    omitted = ~mixed & ~found.any(1).all(1)
    own = found.diagonal(dim1=1, dim2=2).all(1)
    return dict(zip(OUTCOMES, (~mixed & own, ~mixed & ~omitted & ~own, mixed, omitted), strict=True))


def halfway(likeness: Tensor, control: Tensor, ceiling: Tensor) -> Tensor:
    """Tell where a subject is found: where more than half of its gap is closed.

    The gap lies between images of the plain noun and the references, as in "DINO gap closed". One half of it is where
    an image is as near to the mean of the one kind as to that of the other, so nothing is left to choose.

    Args:
        likeness: How near each region is to the references of each subject, ``(N, R, C)``.
        control: Mean likeness of images of the plain noun to the references of each subject, ``(C,)``.
        ceiling: Mean likeness of the references of each subject to each other, ``(C,)``.

    Returns:
        Bool ``(N, R, C)``. A subject that is no nearer to itself than its noun is to it is found nowhere.
    """
    return (likeness > (control + ceiling) / 2) & (ceiling > control)


def found_by_look(right: Tensor, telling: Tensor) -> tuple[Tensor, Tensor]:
    """Tell which subjects a region shows by the attributes in which the subjects differ.

    A subject is found where more than half of them are read as its own. A region *blends* subjects where more than half
    are read as those of one subject or another, but no subject has more than half.

    Args:
        right: Whether each region reads like each subject in each attribute, bool ``(N, R, C, A)``.
        telling: Whether the subjects differ in each attribute, bool ``(A,)``, in one at least.

    Returns:
        Found, bool ``(N, R, C)``, and blended, bool ``(N, R)``.
    """
    told, half = right[..., telling], int(telling.sum()) / 2
    found = told.sum(-1) > half
    return found, (told.any(2).sum(-1) > half) & ~found.any(-1)


def as_scores(shares: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Turn outcomes into columns: 1 where an image has the outcome, else 0."""
    return {f"{prefix}{name}": shown.to(torch.float64) for name, shown in shares.items()}
