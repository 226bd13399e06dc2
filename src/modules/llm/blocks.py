"""The blocks of any Hugging Face decoder, and what in them a token's context cannot change. No family is named.

Shapes: B prompts, L tokens, D width.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Observe = Callable[[int, nn.Module, tuple, dict[str, Any], Tensor], None]
"""``(block index, module, args, kwargs, output)`` of a call."""


def decoder_blocks(decoder: nn.Module, number: int) -> list[nn.Module]:
    """The transformer's blocks: the one outermost list of ``number`` modules.

    Raises:
        ValueError: If there is none, or more than one.
    """
    lists = {
        name: module
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == number
    }
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outermost) != 1:
        raise ValueError(
            f"cannot tell the {number} blocks of a {type(decoder).__name__}: "
            f"{len(outermost)} lists of modules have that length; use another language model"
        )
    return list(lists[outermost[0]])


def attention_of(block: nn.Module) -> nn.Module:
    """The attention inside a block.

    Raises:
        ValueError: If the block has none, or several.
    """
    found = [child for child in block.children() if "attention" in type(child).__name__.lower()]
    if len(found) != 1:
        raise ValueError(f"a {type(block).__name__} has {len(found)} attentions, not one; use encoding.state=output")
    return found[0]


def first(output: Any) -> Tensor:
    """The hidden states of what a module returned: a tensor, or a tuple that starts with it."""
    return output if isinstance(output, Tensor) else output[0]


def hidden_input(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states ``(B, L, D)`` that a module was called with: its first argument, however it was passed."""
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    return next(iter(bound.arguments.values()))


@contextlib.contextmanager
def observed(modules: Sequence[nn.Module], observe: Observe) -> Iterator[None]:
    """While active, ``observe`` gets every call of the modules, right after it."""

    def hooked(index: int):
        return lambda module, args, kwargs, output: observe(index, module, args, kwargs, first(output))

    handles = [module.register_forward_hook(hooked(index), with_kwargs=True) for index, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def alone_mask(hidden: Tensor, context: str = "self") -> Tensor:
    """The additive mask ``(B, 1, L, L)`` under which every token of ``hidden`` ``(B, L, D)`` sees only itself.

    With one visible key its softmax weight is exactly 1, whatever the logit: positions, scaling and windows cancel.

    Args:
        hidden: Gives shape, precision and device.
        context: ``self``, or ``self+first``: the first token stays visible too.
    """
    batch, length, _ = hidden.shape
    visible = torch.eye(length, dtype=torch.bool, device=hidden.device)
    if context == "self+first":
        visible[:, 0] = True
    mask = torch.zeros(length, length, dtype=hidden.dtype, device=hidden.device)
    mask.masked_fill_(~visible, torch.finfo(hidden.dtype).min)
    return mask.expand(batch, 1, length, length)


def call_under(
    mask: Tensor, module: nn.Module, args: tuple, kwargs: Mapping[str, Any], hidden: Tensor | None = None
) -> Tensor:
    """Call a module again under another attention mask; its own hooks stay silent.

    Args:
        mask: Additive, ``(B, 1, L, L)``.
        module: A block or an attention.
        args: Of the call before.
        kwargs: Of the call before.
        hidden: Other hidden states ``(B, L, D)``; None for those of the call before.
    """
    bound = with_mask(mask, module, args, kwargs)
    if hidden is not None:
        bound.arguments[next(iter(bound.arguments))] = hidden
    return first(module.forward(*bound.args, **bound.kwargs))


def with_mask(mask: Tensor, module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
    """The arguments of a call with another attention mask, however the family passes it.

    Raises:
        ValueError: If the module takes none.
    """
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    if "attention_mask" not in bound.signature.parameters:
        raise ValueError(
            f"{type(module).__name__} takes no attention mask, so it cannot encode a token without its context; "
            "use a transformer"
        )
    bound.arguments["attention_mask"] = mask
    return bound


@contextlib.contextmanager
def replayed(outputs: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """While active, these modules return what is given instead of computing."""
    before = {module: vars(module).get("forward") for module in outputs}

    def constant(output: Tensor):
        return lambda *args, **kwargs: output

    for module, output in outputs.items():
        module.forward = constant(output)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward  # type: ignore[method-assign]


def linear_layers(module: nn.Module) -> list[nn.Module]:
    """What does the work in a module: its leaves that hold a matrix."""
    return [leaf for leaf in module.modules() if not list(leaf.children()) and _is_matrix(leaf)]


def _is_matrix(leaf: nn.Module) -> bool:
    weight = getattr(leaf, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(leaf, nn.Embedding)
