"""A frozen decoder-only language model as the encoder sees it: blocks that can be called again without the context."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.modules.llm.blocks import (
    alone_mask,
    attention_of,
    call_under,
    decoder_blocks,
    hidden_input,
    linear_layers,
    observed,
)


class Run(NamedTuple):
    """Both ends of a forward pass, ``(B, L, D)`` each: what enters the first block, and the state after the final norm.

    The state before that norm is the last block's own output; ``hidden_states[-1]`` of transformers is not.
    """

    embedding: Tensor
    last: Tensor


class Decoder:
    """The transformer of a causal language model.

    Four tokens are run through it at once, to be sure of what everything else relies on: a position does not depend on
    later ones, and a block under a mask that hides all other tokens encodes each token alone.

    Args:
        model: Any decoder-only model of transformers; frozen here. Its language head is not used.

    Raises:
        ValueError: If its attention is two-sided, or a block mixes tokens by other means than attention.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.module = model.get_decoder().requires_grad_(False).eval()
        config = self.module.config.get_text_config()
        self.width = int(config.hidden_size)
        self.blocks = decoder_blocks(self.module, config.num_hidden_layers)
        self._unreached: dict[str, list[tuple[nn.Module, ...]]] = {}
        # Tokens that differ; none is the usual padding, 0.
        self._ids = (torch.arange(1, 5) % config.vocab_size)[None]
        self._check_causal()
        self._check_masks()

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.module.to(device)

    @torch.no_grad()
    def run(self, input_ids: Tensor) -> Run:
        """An ordinary forward pass over ids ``(B, L)``, padded on the right, if at all."""
        embedding: list[Tensor] = []

        def observe(index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            embedding.append(hidden_input(module, args, kwargs))

        with observed(self.blocks[:1], observe):
            output = self.module(input_ids=input_ids.to(self.module.device), use_cache=False)
        return Run(embedding[0], output.last_hidden_state)

    def compared(self, state: str) -> list[nn.Module]:
        """The module of every block whose output the score compares: its attention, or the block."""
        return [attention_of(block) for block in self.blocks] if state == "attention" else self.blocks

    def unreached(self, state: str) -> list[tuple[nn.Module, ...]]:
        """For every compared module, the linear layers in it that get the same input with and without the context.

        Such are the projections before attention and, in blocks that run attention and MLP side by side, the MLP. They
        need not be computed twice. Which they are is not known by name: a gradient from the mask does not reach them.
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
        other[:, -1] = self._ids[:, 0]
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
    # Some families change what a layer returned in place: it cannot stand in for the layer again.
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
    # A mask that was turned into booleans on the way says nothing.
    return [layer for layer in layers if calls[layer] == 1 and layer not in reached] if output.requires_grad else []


def _differ(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors differ by more than the rounding of their precision."""
    error = (first.float() - second.float()).norm() / first.float().norm().clamp(min=1e-12)
    return bool(error > 8 * torch.finfo(first.dtype).eps)
