"""What is read off a language model: per block, the state of every token with its context minus without it.

Shapes: B prompts, K states of a token, L tokens, D width, T blocks.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.modules.llmdiff.decoder import (
    Decoder,
    Run,
    alone_mask,
    call_under,
    hidden_input,
    observed,
    replayed,
    with_mask,
)
from src.modules.llmdiff.options import EncodingOptions


@torch.no_grad()
def read_states(decoder: Decoder, input_ids: Tensor, options: EncodingOptions) -> Tensor:
    """The states of every token, ``(B, K, L, D)`` in the model's precision.

    State 0 is where c starts, and the others are what is added to it: under ``features=llmdiff`` the embedding and one
    Delta per block (LLMDiff, arXiv 2502.04412: the contextual minus the context-free score of the block), under ``sum``
    the embedding and one output per block, else the one state that the feature is.

    Args:
        decoder: The frozen model.
        input_ids: ``(B, L)``, padded on the right: attention is causal, so no real position sees padding.
        options: Which states.
    """
    if options.features == "llmdiff":
        deltas = _local_deltas if options.stream == "local" else _global_deltas
        return torch.stack(deltas(decoder, input_ids, options), dim=1)
    (embedding, last), outputs = _recorded(decoder, decoder.blocks, input_ids)
    chosen = [outputs[index] for index in _chosen(decoder, options)]
    states = {
        "last": [last],
        "penultimate": [[embedding, *outputs][-2]],
        "embed": [embedding],
        "ln_mean": [_normalised_mean(chosen)],
        "sum": [embedding, *chosen],
    }
    return torch.stack(states[options.features], dim=1)


def num_terms(number_of_blocks: int, options: EncodingOptions) -> int:
    """How many states besides the first ``read_states`` returns: K - 1."""
    blocks = number_of_blocks if options.blocks is None else len(options.blocks)
    return blocks if options.features in ("llmdiff", "sum") else 0


def _chosen(decoder: Decoder, options: EncodingOptions) -> list[int]:
    return list(range(len(decoder.blocks)) if options.blocks is None else options.blocks)


def _normalised_mean(outputs: list[Tensor]) -> Tensor:
    normed = [F.layer_norm(output.float(), output.shape[-1:], eps=1e-8) for output in outputs]
    return torch.stack(normed).mean(0).to(outputs[0].dtype)


def _local_deltas(decoder: Decoder, input_ids: Tensor, options: EncodingOptions) -> list[Tensor]:
    """The embedding, and one Delta per block: it is called again on its own input while each token sees only itself.

    The identity path cancels, so that output and residual update give the same difference.
    """
    chosen = _chosen(decoder, options)
    modules = [decoder.compared(options.state)[index] for index in chosen]
    unreached = [decoder.unreached(options.state)[index] for index in chosen]
    kept: dict[nn.Module, Tensor] = {}
    deltas: list[Tensor] = []

    def observe(index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        mask = alone_mask(hidden_input(module, args, kwargs), options.context)
        with replayed({layer: kept.pop(layer) for layer in unreached[index]}):
            deltas.append(_difference(output, call_under(mask, module, args, kwargs)))

    with _keeping([layer for layers in unreached for layer in layers], kept), observed(modules, observe):
        run = decoder.run(input_ids)
    return [run.embedding, *deltas]


@contextlib.contextmanager
def _keeping(layers: list[nn.Module], kept: dict[nn.Module, Tensor]) -> Iterator[None]:
    """While active, the outputs of these layers go to ``kept``."""

    def observe(index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        kept[module] = output

    with observed(layers, observe):
        yield


def _global_deltas(decoder: Decoder, input_ids: Tensor, options: EncodingOptions) -> list[Tensor]:
    """The same against a second stream through all blocks, in which no token ever saw another."""
    modules = [decoder.compared(options.state)[index] for index in _chosen(decoder, options)]
    added = options.state == "update"
    run, contextual = _recorded(decoder, modules, input_ids, added)
    with _each_alone(decoder, options.context):
        _, alone = _recorded(decoder, modules, input_ids, added)
    return [run.embedding, *(_difference(one, other) for one, other in zip(contextual, alone, strict=True))]


def _recorded(
    decoder: Decoder, modules: list[nn.Module], input_ids: Tensor, added: bool = False
) -> tuple[Run, list[Tensor]]:
    """A pass and the output of every module, or what each added to its input."""
    outputs: list[Tensor] = []

    def observe(index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        outputs.append(output - hidden_input(module, args, kwargs) if added else output)

    with observed(modules, observe):
        run = decoder.run(input_ids)
    return run, outputs


@contextlib.contextmanager
def _each_alone(decoder: Decoder, context: str) -> Iterator[None]:
    """While active, every block hides all other tokens."""

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        bound = with_mask(alone_mask(hidden_input(module, args, kwargs), context), module, args, kwargs)
        return bound.args, bound.kwargs

    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in decoder.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(contextual: Tensor, alone: Tensor) -> Tensor:
    """Subtracted in float32, kept in the model's precision.

    The context of a first token is that token. Where experts are chosen per batch, rounding says otherwise, and a
    normalisation would make something of it.
    """
    delta = contextual.float() - alone.float()
    delta[:, 0] = 0
    return delta.to(contextual.dtype)
