"""A frozen decoder-only language model whose blocks can be called again without the context.

Shapes: B prompts, L tokens, D width of the language model.
"""

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Observe = Callable[[int, nn.Module, tuple, dict[str, Any], Tensor], None]
"""Is told of a call: ``(block index, module, args, kwargs, output)``."""


def decoder_blocks(decoder: nn.Module, number: int) -> list[nn.Module]:
    """Find the transformer's blocks: the only outermost ``ModuleList`` of ``number`` modules.

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
    """Find the attention inside a block.

    Raises:
        ValueError: If the block has none, or several.
    """
    found = [child for child in block.children() if "attention" in type(child).__name__.lower()]
    if len(found) != 1:
        raise ValueError(f"a {type(block).__name__} has {len(found)} attentions, not one; use encoding.state=output")
    return found[0]


def first(output: Any) -> Tensor:
    """Return the hidden states from a module's output, which is a tensor or a tuple that starts with it."""
    return output if isinstance(output, Tensor) else output[0]


def hidden_input(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """Return the hidden states ``(B, L, D)`` of a call: the first argument, passed by position or by name."""
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    return next(iter(bound.arguments.values()))


@contextlib.contextmanager
def observed(modules: Sequence[nn.Module], observe: Observe) -> Iterator[None]:
    """While active, tell ``observe`` of every call of the modules, right after it."""

    def hooked(index: int):
        return lambda module, args, kwargs, output: observe(index, module, args, kwargs, first(output))

    handles = [module.register_forward_hook(hooked(index), with_kwargs=True) for index, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def alone_mask(hidden: Tensor, context: str = "self") -> Tensor:
    """Make the additive mask ``(B, 1, L, L)`` under which every token sees only itself.

    The softmax weight of a single visible key is exactly 1, so positions, scaling and windows have no effect.

    Args:
        hidden: Hidden states ``(B, L, D)``, which give shape, precision and device.
        context: ``self``, or ``self+first`` to let every token see the first one too.
    """
    batch, length, _ = hidden.shape
    visible = torch.eye(length, dtype=torch.bool, device=hidden.device)  # (L, L)
    if context == "self+first":
        visible[:, 0] = True
    mask = torch.zeros(length, length, dtype=hidden.dtype, device=hidden.device)
    mask.masked_fill_(~visible, torch.finfo(hidden.dtype).min)
    return mask.expand(batch, 1, length, length)


def call_under(
    mask: Tensor, module: nn.Module, args: tuple, kwargs: Mapping[str, Any], hidden: Tensor | None = None
) -> Tensor:
    """Call a module again under another attention mask, without its own hooks.

    Args:
        mask: Additive mask, ``(B, 1, L, L)``.
        module: A block or an attention.
        args: Positional arguments of the first call.
        kwargs: Keyword arguments of the first call.
        hidden: Other hidden states ``(B, L, D)``; None for those of the first call.
    """
    bound = with_mask(mask, module, args, kwargs)
    if hidden is not None:
        bound.arguments[next(iter(bound.arguments))] = hidden
    return first(module.forward(*bound.args, **bound.kwargs))


def with_mask(mask: Tensor, module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
    """Return the arguments of a call with another attention mask, passed by position or by name.

    Raises:
        ValueError: If the module takes no mask.
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
    """While active, let these modules return the given outputs instead of computing."""
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
    """Return the leaves of a module that hold a matrix, without embeddings."""
    return [leaf for leaf in module.modules() if not list(leaf.children()) and _is_matrix(leaf)]


def _is_matrix(leaf: nn.Module) -> bool:
    weight = getattr(leaf, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(leaf, nn.Embedding)


class Run(NamedTuple):
    """Both ends of a forward pass, ``(B, L, D)`` each: the input of the first block, the state after the final norm.

    The state before that norm, x^0, is the last block's own output; ``hidden_states[-1]`` of transformers is not.
    """

    embedding: Tensor
    last: Tensor


class Decoder:
    """The frozen transformer of a causal language model.

    The constructor runs four tokens through it to check what everything else relies on: a position does not depend on
    later ones, and a block encodes each token alone under a mask that hides all others.

    Args:
        model: Any decoder-only model of transformers; it is frozen, and its language head is not used.

    Raises:
        ValueError: If its attention is bidirectional, or a block mixes tokens by other means than attention.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.module = model.get_decoder().requires_grad_(False).eval()
        config = self.module.config.get_text_config()
        self.width = int(config.hidden_size)
        self.blocks = decoder_blocks(self.module, config.num_hidden_layers)
        self._unreached: dict[str, list[tuple[nn.Module, ...]]] = {}
        # Four different tokens, none of which is the usual padding, 0.
        self._ids = (torch.arange(1, 5) % config.vocab_size)[None]
        self._check_causal()
        self._check_masks()

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.module.to(device)

    @torch.no_grad()
    def run(self, input_ids: Tensor) -> Run:
        """Run an ordinary forward pass over ids ``(B, L)``; padding may only be on the right."""
        embedding: list[Tensor] = []

        def observe(index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            embedding.append(hidden_input(module, args, kwargs))

        with observed(self.blocks[:1], observe):
            output = self.module(input_ids=input_ids.to(self.module.device), use_cache=False)
        return Run(embedding[0], output.last_hidden_state)

    def compared(self, state: str) -> list[nn.Module]:
        """Return the module of every block whose output the score compares: its attention, or the block."""
        return [attention_of(block) for block in self.blocks] if state == "attention" else self.blocks

    def unreached(self, state: str) -> list[tuple[nn.Module, ...]]:
        """Return the linear layers of every compared module whose input is the same with and without the context.

        These need not be computed twice. They are the projections before attention and, in blocks that run attention
        and MLP in parallel, the MLP. Whatever their names, they are those that no gradient reaches from the mask.
        """
        if state not in self._unreached:
            modules = self.compared(state)
            found: list[tuple[nn.Module, ...]] = [()] * len(modules)

            def observe(index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
                found[index] = _unreached_layers(module, args, kwargs)

            with observed(modules, observe):
                self.run(self._ids)
            self._unreached[state] = found
        return self._unreached[state]

    def _check_causal(self) -> None:
        other = self._ids.clone()
        other[:, -1] = self._ids[:, 0]  # only the last token differs
        before, after = self.run(self._ids).last[:, :-1], self.run(other).last[:, :-1]
        if _differ(before, after):
            raise ValueError(
                f"{type(self.module).__name__} lets tokens see later ones; give a decoder-only language model"
            )

    def _check_masks(self) -> None:
        def observe(index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            hidden = hidden_input(module, args, kwargs)
            mask = alone_mask(hidden)
            try:
                alone = call_under(mask, module, args, kwargs)
                backwards = call_under(mask, module, args, kwargs, hidden.flip(1))
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"{type(module).__name__} takes no additive attention mask ({error})") from error
            if _differ(alone, backwards.flip(1)):
                raise ValueError(
                    f"block {index}, a {type(module).__name__}, mixes tokens by other means than attention, so it "
                    "cannot encode a token without its context; use a plain transformer"
                )

        with observed(self.blocks, observe):
            self.run(self._ids)


def _unreached_layers(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> tuple[nn.Module, ...]:
    mask = alone_mask(hidden_input(module, args, kwargs))
    outputs: dict[nn.Module, tuple[Tensor, int]] = {}

    def keep(index: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        outputs[layer] = (output, output._version)

    with observed(_layers_before_the_mask(module, args, kwargs, mask), keep):
        call_under(mask, module, args, kwargs)
    # Some families change a layer's output in place, so that it cannot be used again.
    return tuple(layer for layer, (output, version) in outputs.items() if output._version == version)


def _layers_before_the_mask(module: nn.Module, args: tuple, kwargs: Mapping[str, Any], mask: Tensor) -> list[nn.Module]:
    layers, calls, reached = linear_layers(module), Counter[nn.Module](), set[nn.Module]()

    def hook(layer: nn.Module, inputs: tuple) -> None:
        calls[layer] += 1
        if inputs[0].requires_grad:
            reached.add(layer)

    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        with torch.enable_grad():
            output = call_under(mask.clone().requires_grad_(), module, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    # If the module turned the mask into booleans, there is no gradient that could tell.
    return [layer for layer in layers if calls[layer] == 1 and layer not in reached] if output.requires_grad else []


def _differ(first: Tensor, second: Tensor) -> bool:
    """Tell whether two tensors differ by more than the rounding of their precision."""
    error = (first.float() - second.float()).norm() / first.float().norm().clamp(min=1e-12)
    return bool(error > 8 * torch.finfo(first.dtype).eps)
