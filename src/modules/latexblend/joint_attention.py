"""Attention of a joint transformer, caught whichever processor computes it: it is given a mask, or recorded.

Shapes: B rows of a batch, H heads, L text rows, N image rows, T of both together, D width of a head.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from src.modules.backbones.projections import text_projections
from src.modules.latexblend.attention import MAX_CELLS

Named = dict[str, Any]
Change = Callable[[Named], Named]
"""Of the named arguments of attention, ``query``, ``key``, ``value`` and more, what it is computed from instead."""


class _Caught(TorchFunctionMode):
    """Hands over the arguments of each attention that is computed while it is active."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change, self.reached = change, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.reached = True
            named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            args, kwargs = (), self.change(named)
        return func(*args, **kwargs)


@contextlib.contextmanager
def caught(
    denoiser: nn.Module, change_in: Callable[[str, Mapping[str, Any]], Change | None], missed: str
) -> Iterator[None]:
    """While active, catch joint attention; afterwards the denoiser is bit for bit what it was.

    Args:
        denoiser: The transformer.
        change_in: Returns the change in a layer, from its name and the named arguments of its call; None for none.
        missed: What is wrong where attention is computed by something else than torch's own function.

    Raises:
        ValueError: While drawing, with ``missed``.
    """
    entered: list[_Caught] = []

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, named: dict) -> None:
            if (change := change_in(name, named)) is not None:
                entered.append(_Caught(change))
                entered[-1].__enter__()

        return hook

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        if entered:
            mode = entered.pop()
            mode.__exit__(None, None, None)
            if not mode.reached and output is not None:
                raise ValueError(missed)

    # Names are k.<layer> and v.<layer>.
    names = sorted({name.partition(".")[2] for name in text_projections(denoiser)})
    layers = {name: denoiser.get_submodule(name) for name in names}
    handles: list[Any] = [one.register_forward_pre_hook(before(name), with_kwargs=True) for name, one in layers.items()]
    # Also where the layer raises, or the change would act on what comes after it.
    handles += [one.register_forward_hook(after, always_call=True) for one in layers.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def recorded_joint_attention(denoiser: nn.Module, text_first: bool) -> Iterator[dict[str, Tensor]]:
    """While active, record how much each image row attends to each text row, ``(B, N, L)``, in every forward pass.

    Shares are averaged over heads; they are computed in addition to the layer's own attention. Layers that get text
    and image as one, such as FLUX's single blocks, are left out, and so are those of more than ``MAX_CELLS``
    image rows.

    Args:
        denoiser: The transformer.
        text_first: Whether text stands before the image.

    Raises:
        ValueError: As in ``caught``.
    """
    maps: dict[str, Tensor] = {}

    def change_in(name: str, named: Mapping[str, Any]) -> Change | None:
        text = named.get("encoder_hidden_states")
        if text is None:
            return None

        def seen(given: Named) -> Named:
            query, key = given["query"], given["key"]  # (B, H, T, D)
            length, cells = text.shape[1], query.shape[-2] - text.shape[1]
            if cells <= MAX_CELLS:
                image = query[..., length:, :] if text_first else query[..., :cells, :]  # (B, H, N, D)
                shares = (image @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)  # (B, H, N, T)
                maps[name] = (shares[..., :length] if text_first else shares[..., cells:]).mean(1)
            return given

        return seen

    missed = "attention of this model cannot be seen; call set_attention_backend('native') of the transformer"
    with caught(denoiser, change_in, missed):
        yield maps
