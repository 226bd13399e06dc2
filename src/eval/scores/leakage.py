"""What came from the reference besides what was asked for: its content, its caption, or the whole picture.

There is no agreed measure, so there are several. Except for retrieval, each is a difference to a baseline
without the reference, drawn with the same prompts and seeds.
"""

from dataclasses import dataclass

from torch import Tensor

from src.eval.scores.similarity import clip_t, own_reference, within_set


@dataclass(frozen=True)
class Retrieval:
    """What each image was taken for, among all prompts and the caption of the reference.

    Attributes:
        leaked: Whether the caption is nearest, ``(N,)``; the mean is the leak rate.
        right: Whether its own prompt is nearest, ``(N,)``; the mean is recall at 1.
    """

    leaked: Tensor
    right: Tensor


def reference_leakage(generated: Tensor, baseline: Tensor, references: Tensor) -> Tensor:
    """How much nearer each image is to its reference than its baseline is, in a content space such as DINOv2.

    Args:
        generated: Unit embeddings ``(N, D)``.
        baseline: Unit embeddings ``(N, D)``, of the same prompts and seeds.
        references: Unit embeddings ``(N, D)``, or ``(1, D)`` for one reference to all.

    Returns:
        Shape ``(N,)``.

    Raises:
        ValueError: If the numbers do not fit.
    """
    _check_paired(generated, baseline)
    return own_reference(generated, references) - own_reference(baseline, references)


def text_leakage(generated: Tensor, baseline: Tensor, captions: Tensor) -> Tensor:
    """How much better the caption of the reference's content fits each image than its baseline.

    Args:
        generated: Unit embeddings ``(N, D)``.
        baseline: Unit embeddings ``(N, D)``, of the same prompts and seeds.
        captions: Unit embeddings ``(N, D)``, or ``(1, D)`` for one reference to all.

    Returns:
        Shape ``(N,)``.

    Raises:
        ValueError: If the numbers do not fit.
    """
    _check_paired(generated, baseline)
    return clip_t(generated, captions) - clip_t(baseline, captions)


def retrieve(generated: Tensor, prompts: Tensor, own: Tensor, captions: Tensor) -> Retrieval:
    """Find the nearest text of each image among all prompts and the caption of its reference.

    Args:
        generated: Unit embeddings ``(N, D)``.
        prompts: Unit embeddings ``(P, D)`` of different prompts.
        own: Which prompt each image was drawn from, ``(N,)``.
        captions: Unit embeddings ``(N, D)``, or ``(1, D)`` for one reference to all.

    Raises:
        ValueError: If the numbers do not fit.
    """
    if len(own) != len(generated):
        raise ValueError(f"{len(generated)} images need as many prompt numbers, got {len(own)}")
    nearest, index = (generated @ prompts.T).max(-1)
    leaked = clip_t(generated, captions) > nearest
    return Retrieval(leaked, ~leaked & (index == own))


def collapse(generated: Tensor, baseline: Tensor) -> Tensor:
    """How much more alike images of different prompts became than their baselines are.

    Args:
        generated: Unit embeddings ``(N, D)`` of different prompts in one style, ``N`` at least 2.
        baseline: Unit embeddings ``(N, D)``, of the same prompts and seeds.

    Returns:
        Shape ``(N,)``.

    Raises:
        ValueError: If the numbers do not fit.
    """
    _check_paired(generated, baseline)
    return within_set(generated) - within_set(baseline)


def _check_paired(generated: Tensor, baseline: Tensor) -> None:
    if len(generated) != len(baseline):
        raise ValueError(f"each image needs its baseline, got {len(generated)} images and {len(baseline)} baselines")
