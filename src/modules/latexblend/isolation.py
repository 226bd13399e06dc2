"""The attention mask of concepts in joint attention: what is no concept's own does not read it, but for the image.

Text attends to text there. Other words read the rows of a concept, and so carry it to wherever they are read. The mask
ends that: each query of a row of text that is not the concept's own skips the concept's keys. The image reads both.

Shapes: B rows of a batch, L text rows, T text and image rows together, H heads, D width of a head.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from src.modules.latexblend.joint_attention import Named, caught

Place = tuple[int, Sequence[int]]
"""The row of the batch that a concept stands in, and its S text rows."""
MISSED = (
    "method.rectification.isolate=true masks attention, and this model computes it by something that takes no mask; "
    "call set_attention_backend('native') of the transformer, or leave it out"
)


def allowed(places: Sequence[Place], rows: int, length: int, total: int, first: int) -> Tensor:
    """Say what may attend to what.

    Args:
        places: Where concepts stand.
        rows: Rows of the batch B.
        length: Text rows L.
        total: Text and image rows together T.
        first: Where text begins among these.

    Returns:
        Queries to keys, boolean, ``(B, 1, T, T)``.
    """
    mask = torch.ones(rows, 1, total, total, dtype=torch.bool)
    for row, positions in places:
        own = torch.tensor(list(positions)) + first
        others = torch.ones(total, dtype=torch.bool)
        others[own] = False
        others[:first] = others[first + length :] = False  # The image.
        mask[row, 0, others.nonzero(), own] = False
    return mask


@contextlib.contextmanager
def isolated(denoiser: nn.Module, read: Callable[[], tuple[Sequence[Place], int]], text_first: bool) -> Iterator[None]:
    """While active, mask joint attention; afterwards the denoiser is bit for bit what it was.

    Args:
        denoiser: The transformer.
        read: Returns where concepts stand at this step, none where they do not act, and the number of text rows L.
        text_first: Whether text stands before the image.

    Raises:
        ValueError: While drawing, if attention is computed by something that cannot be given a mask.
    """
    masks: dict[tuple, Tensor] = {}

    def masked(given: Named) -> Named:
        mask, present = mask_of(given["query"]), given.get("attn_mask")
        if present is not None:
            mask = mask & present if present.dtype == torch.bool else present.masked_fill(~mask, float("-inf"))
        return given | {"attn_mask": mask}

    def mask_of(query: Tensor) -> Tensor:
        places, length = read()
        rows, total = len(query), query.shape[-2]
        key = (repr(places), rows, length, total, query.device)
        if key not in masks:
            masks.clear()
            masks[key] = allowed(places, rows, length, total, 0 if text_first else total - length).to(query.device)
        return masks[key]

    with caught(denoiser, lambda name, named: masked if read()[0] else None, MISSED):
        yield
