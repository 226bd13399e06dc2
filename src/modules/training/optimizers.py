"""Optimisers beside those of torch."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch


def adamw_8bit(params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 1e-2) -> torch.optim.Optimizer:
    """Make an AdamW whose two moments take 8 bits a number where a parameter has more than 4096, of bitsandbytes.

    Args:
        params: Parameters, or groups of them.
        lr: Peak learning rate.
        weight_decay: Weight decay of the groups that have none of their own.

    Raises:
        ValueError: If there is no CUDA GPU, or bitsandbytes is not installed.
    """
    if not torch.cuda.is_available():
        raise ValueError("optimizer=adamw_8bit needs a CUDA GPU, and this machine has none; leave it out")
    if find_spec("bitsandbytes") is None:
        raise ValueError('optimizer=adamw_8bit needs the package bitsandbytes; type: pip install -e ".[8bit]"')
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(params, lr=lr, weight_decay=weight_decay)
