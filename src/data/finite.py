"""Refuse numbers that are not finite, before they are kept, shown or learnt from."""

import torch
from torch import Tensor

WIDER = "take backbone.dtype=bfloat16 or float32, which overflow later than float16"
"""Advice where a frozen model overflows."""
DRAWN = "the pixels that were drawn"
DRAWN_ADVICE = f"{WIDER}; where a model is in training, take a lower learning rate"


class NotFiniteError(ValueError):
    """Numbers are NaN or infinite."""


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor of any precision holds neither NaN nor infinity."""
    if not tensor.is_floating_point():
        return True
    # A sum needs no second tensor; where it overflows by itself, every value is looked at.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def check_finite(tensor: Tensor, what: str, advice: str = WIDER) -> None:
    """Refuse a tensor that holds NaN or infinity.

    Args:
        tensor: Any tensor.
        what: What the error calls its values, such as "the latents of these images".
        advice: What the error tells the user to do.

    Raises:
        NotFiniteError: If it does.
    """
    if not is_finite(tensor):
        share = 1 - tensor.isfinite().float().mean().item()
        raise NotFiniteError(f"{what} are not finite ({share:.1%} are NaN or infinite); {advice}")
