"""Compute the score of every block: the state of each token with its context, minus the state without it.

Shapes: B prompts, K states of a token, L tokens, D width of the language model, T blocks.
"""

import contextlib
from collections.abc import Iterator, Sequence
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
    """Read the states of every token, ``(B, K, L, D)`` in the model's precision.

    State 0 is the initial c, and the others are terms that are added to it. Under ``features=llmdiff`` these are the
    embedding and one Delta per block, its contextual minus its context-free score (LLMDiff, arXiv 2502.04412); under
    ``sum`` the embedding and one output per block; else a single state.

    Args:
        decoder: The frozen model.
        input_ids: Token ids ``(B, L)``, padded on the right; attention is causal, so no real token sees padding.
        options: Which states to read.
    """
    return read_each(decoder, input_ids, [options])[0]


@torch.no_grad()
def read_each(decoder: Decoder, input_ids: Tensor, options: Sequence[EncodingOptions]) -> list[Tensor]:
    """Read several kinds of states as ``read_states`` does; all but ``llmdiff`` share one pass through the model."""
    plain = any(each.features != "llmdiff" for each in options)
    shared = _recorded(decoder, decoder.blocks, input_ids) if plain else None
    return [torch.stack(_states(decoder, input_ids, each, shared), dim=1) for each in options]  # (B, K, L, D) each


def _states(
    decoder: Decoder, input_ids: Tensor, options: EncodingOptions, shared: tuple[Run, list[Tensor]] | None
) -> list[Tensor]:
    if options.features == "llmdiff":
        deltas = _local_deltas if options.stream == "local" else _global_deltas
        return deltas(decoder, input_ids, options)
    assert shared is not None
    (embedding, last), outputs = shared
    chosen = [outputs[index] for index in _chosen(decoder, options)]
    if options.features == "ln_mean":
        return [_normalised_mean(chosen)]
    states = {
        "last": [last],
        "penultimate": [[embedding, *outputs][-2]],
        "embed": [embedding],
        "sum": [embedding, *chosen],
    }
    return states[options.features]


def num_terms(number_of_blocks: int, options: EncodingOptions) -> int:
    """Count the states that ``read_states`` returns besides the first, K - 1."""
    blocks = number_of_blocks if options.blocks is None else len(options.blocks)
    return blocks if options.features in ("llmdiff", "sum") else 0


def _chosen(decoder: Decoder, options: EncodingOptions) -> list[int]:
    return list(range(len(decoder.blocks)) if options.blocks is None else options.blocks)


def _normalised_mean(outputs: list[Tensor]) -> Tensor:
    normed = [F.layer_norm(output.float(), output.shape[-1:], eps=1e-8) for output in outputs]  # (B, L, D) each
    return torch.stack(normed).mean(0).to(outputs[0].dtype)


def _local_deltas(decoder: Decoder, input_ids: Tensor, options: EncodingOptions) -> list[Tensor]:
    """Return the embedding and one Delta per block, ``Delta_i = Block_i(X_i; causal) - Block_i(X_i; self only)``.

    Both terms have the same input X_i, ``(B, L, D)``, so output and residual update give the same difference.
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

    with _outputs_kept([layer for layers in unreached for layer in layers], kept), observed(modules, observe):
        run = decoder.run(input_ids)
    return [run.embedding, *deltas]


@contextlib.contextmanager
def _outputs_kept(layers: list[nn.Module], kept: dict[nn.Module, Tensor]) -> Iterator[None]:
    """While active, put the outputs of these layers into ``kept``."""

    def observe(index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        kept[module] = output

    with observed(layers, observe):
        yield


def _global_deltas(decoder: Decoder, input_ids: Tensor, options: EncodingOptions) -> list[Tensor]:
    """Return the embedding and one Delta per block against a second pass in which no token ever sees another."""
    modules = [decoder.compared(options.state)[index] for index in _chosen(decoder, options)]
    added = options.state == "update"
    run, contextual = _recorded(decoder, modules, input_ids, added)
    with _context_hidden(decoder, options.context):
        _, alone = _recorded(decoder, modules, input_ids, added)
    return [run.embedding, *(_difference(one, other) for one, other in zip(contextual, alone, strict=True))]


def _recorded(
    decoder: Decoder, modules: list[nn.Module], input_ids: Tensor, added: bool = False
) -> tuple[Run, list[Tensor]]:
    """Run the model, and return the output of every module, or with ``added`` what it added to its input."""
    outputs: list[Tensor] = []

    def observe(index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        outputs.append(output - hidden_input(module, args, kwargs) if added else output)

    with observed(modules, observe):
        run = decoder.run(input_ids)
    return run, outputs


@contextlib.contextmanager
def _context_hidden(decoder: Decoder, context: str) -> Iterator[None]:
    """While active, hide all other tokens from each token, in every block."""

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
    """Subtract in float32; the difference has the model's precision."""
    delta = contextual.float() - alone.float()
    # The first token has no other context. Mixtures of experts may round its two states differently, and a
    # normalisation would blow that up.
    delta[:, 0] = 0
    return delta.to(contextual.dtype)
