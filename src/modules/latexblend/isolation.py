"""The attention mask of concepts in joint attention: what is no concept's own does not read it, but for the image.

Text attends to text there. Other words read the rows of a concept, and so carry it to wherever they are read. The mask
ends that: each query of a row of text that is not the concept's own skips the concept's keys. The image reads both.

Shapes: B rows of a batch, L text rows, T text and image rows together, H heads, D width of a head.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from src.modules.backbones.projections import text_projections

Place = tuple[int, Sequence[int]]
"""The row of the batch that a concept stands in, and its S text rows."""


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


class _Masked(TorchFunctionMode):
    """Gives each attention that is computed while it is active a mask, whichever processor computes it."""

    def __init__(self, mask_of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mask_of, self.reached = mask_of, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.reached = True
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            mask, present = self.mask_of(given["query"]), given.get("attn_mask")
            if present is not None:
                mask = mask & present if present.dtype == torch.bool else present.masked_fill(~mask, float("-inf"))
            args, kwargs = (), given | {"attn_mask": mask}
        return func(*args, **kwargs)


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
    entered: list[_Masked] = []

    def mask_of(query: Tensor) -> Tensor:
        places, length = read()
        rows, total = len(query), query.shape[-2]
        key = (repr(places), rows, length, total, query.device)
        if key not in masks:
            masks.clear()
            masks[key] = allowed(places, rows, length, total, 0 if text_first else total - length).to(query.device)
        return masks[key]

    def before(module: nn.Module, args: tuple) -> None:
        if read()[0]:
            entered.append(_Masked(mask_of))
            entered[-1].__enter__()

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        if entered:
            mode = entered.pop()
            mode.__exit__(None, None, None)
            if not mode.reached and output is not None:
                raise ValueError(
                    "method.rectification.isolate=true masks attention, and this model computes it by something that "
                    "takes no mask; call set_attention_backend('native') of the transformer, or leave it out"
                )

    layers = {name.partition(".")[2] for name in text_projections(denoiser)}
    modules = [denoiser.get_submodule(name) for name in sorted(layers)]
    handles: list[Any] = [one.register_forward_pre_hook(before) for one in modules]
    # Also where the layer raises, or the mask would act on what comes after it.
    handles += [one.register_forward_hook(after, always_call=True) for one in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
