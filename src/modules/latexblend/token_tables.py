"""The tables of token embeddings in text encoders, whose outputs V* takes the place of."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


def token_tables(encoder: nn.Module) -> list[nn.Module]:
    """Find every module with the table of token embeddings: T5 has two, and calls the one that it does not name."""
    table = encoder.get_input_embeddings().weight  # type: ignore[operator]
    return [module for module in encoder.modules() if getattr(module, "weight", None) is table]


def looked_up(table: nn.Module, embeddings: Tensor) -> Tensor:
    """Return what a table of embeddings would make of rows of its own, ``(..., D)``: Gemma's scales them."""
    return embeddings * torch.as_tensor(getattr(table, "embed_scale", 1.0)).to(embeddings)


@contextlib.contextmanager
def modifier_embedded(
    text_encoders: Sequence[nn.Module], vectors: Sequence[Tensor], positions: Sequence[Tensor]
) -> Iterator[None]:
    """While active, embed one token of each prompt as V* in every text encoder.

    Args:
        text_encoders: Text encoders of transformers.
        vectors: V* of each text encoder, ``(D,)``; gradients flow into them.
        positions: Position of V* in each prompt, ``(B,)`` for each text encoder, negative, from the end of the padded
            prompts: what a backbone puts before them does not move it.
    """

    def embed(vector: Tensor, positions: Tensor):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            here = torch.zeros(output.shape[:2], dtype=torch.bool, device=output.device)
            here[torch.arange(len(positions), device=output.device), positions.to(output.device)] = True
            return torch.where(here[..., None], looked_up(module, vector.to(output)), output)

        return hook

    handles = [
        table.register_forward_hook(embed(vector, at))
        for encoder, vector, at in zip(text_encoders, vectors, positions, strict=True)
        for table in token_tables(encoder)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
