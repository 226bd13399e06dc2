"""Read, replace and cache rows of cross-attention keys and values, with hooks on stock models.

Shapes: B prompts, L tokens, C text width, D width of one layer's keys, S rows of one concept.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from src.modules.backbones.base import cross_attention_projections

Rows = Mapping[str, Tensor]
"""Keys and values of one concept: ``k.<layer>`` and ``v.<layer>`` to ``(S, D)``."""
Transform = Callable[[str, Tensor, Tensor], Tensor]
"""Edits one projection: ``(name, encoder_hidden_states (B, L, C), projected (B, L, D)) -> (B, L, D)``."""


def replace_rows(projected: Tensor, concept: Tensor, positions: Sequence[int]) -> Tensor:
    """Replace the token rows of one concept in a prompt's keys (or values), LaTexBlend Eq. 8.

    Args:
        projected: Keys of whole prompts ``h_b``, shape ``(..., L, D)``.
        concept: Rows from a concept bank ``h_c``, shape ``(S, D)`` or one set per prompt, ``(..., S, D)``.
        positions: Token position of each row; they need not be adjacent.

    Returns:
            ``Blend(h_b, h_c)``, a new tensor of shape ``(..., L, D)``.

    Raises:
        ValueError: If there is not one row per position.
    """
    if concept.shape[-2] != len(positions):
        raise ValueError(f"the concept has {concept.shape[-2]} rows, but its phrase takes {len(positions)} tokens")
    index = torch.tensor(list(positions), device=projected.device)
    values = concept.to(projected).expand(*projected.shape[:-2], -1, -1)  # (..., S, D)
    return projected.index_copy(projected.ndim - 2, index, values)


@contextlib.contextmanager
def transformed_projections(unet: nn.Module, transform: Transform) -> Iterator[None]:
    """While active, pass every cross-attention key and value through ``transform``; afterwards hooks are removed."""

    def hooked(name: str):
        return lambda module, inputs, output: transform(name, inputs[0], output)

    projections = cross_attention_projections(unet)
    handles = [linear.register_forward_hook(hooked(name)) for name, linear in projections.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class ProjectionCache:
    """Computes the keys and values of a text once, as long as the text stays the same from step to step.

    Each layer's entry remembers the tensor object that it was computed from. Another object, or the same one changed in
    place, is computed anew, so the result is always that of the layer.

    Args:
        transform: Edits each projection when it is computed; None for the plain layer.
    """

    def __init__(self, transform: Transform | None = None) -> None:
        self.transform = transform
        self._stored: dict[str, tuple[Tensor, int, Tensor]] = {}

    def __call__(self, name: str, linear: nn.Linear, hidden: Tensor) -> Tensor:
        """Project ``hidden`` ``(B, L, C)`` to ``(B, L, D)``."""
        stored = self._stored.get(name)
        if stored is not None and stored[0] is hidden and stored[1] == hidden._version:
            return stored[2]
        projected = type(linear).forward(linear, hidden)
        if self.transform is not None:
            projected = self.transform(name, hidden, projected)
        # A tensor that was made in inference mode has no version to compare.
        if not hidden.is_inference():
            self._stored[name] = (hidden, hidden._version, projected)
        return projected


@contextlib.contextmanager
def cached_projections(unet: nn.Module, choose: Callable[[], ProjectionCache]) -> Iterator[None]:
    """While active, take cross-attention keys and values from the cache that ``choose`` returns at each call.

    Raises:
        ValueError: If another such context is still open on this UNet.
    """
    projections = cross_attention_projections(unet)
    if any("forward" in vars(linear) for linear in projections.values()):
        raise ValueError("this UNet already has concepts installed; leave that context first")

    def forward(name: str, linear: nn.Linear):
        return lambda hidden, *args: choose()(name, linear, hidden)

    for name, linear in projections.items():
        linear.forward = forward(name, linear)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for linear in projections.values():
            del linear.forward
