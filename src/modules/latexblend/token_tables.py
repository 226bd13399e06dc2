"""The tables of token embeddings in text encoders, whose outputs V* takes the place of."""

import torch
from torch import Tensor, nn


def token_tables(encoder: nn.Module) -> list[nn.Module]:
    """Find every module with the table of token embeddings: T5 has two, and calls the one that it does not name."""
    table = encoder.get_input_embeddings().weight  # type: ignore[operator]
    return [module for module in encoder.modules() if getattr(module, "weight", None) is table]


def looked_up(table: nn.Module, embeddings: Tensor) -> Tensor:
    """Return what a table of embeddings would make of rows of its own, ``(..., D)``: Gemma's scales them."""
    return embeddings * torch.as_tensor(getattr(table, "embed_scale", 1.0)).to(embeddings)
