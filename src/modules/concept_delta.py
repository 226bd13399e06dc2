"""What LaTexBlend trains: changes to the text projections of cross-attention, and the word V*."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class LowRank(nn.Module):
    """A change of rank r to a ``(D, C)`` weight; zero at the start."""

    def __init__(self, out_features: int, in_features: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, in_features) / in_features**0.5)
        self.up = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., C)`` to ``(..., D)``."""
        return F.linear(F.linear(hidden, self.down), self.up)


class Full(nn.Module):
    """A change of full rank to a ``(D, C)`` weight; zero at the start."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., C)`` to ``(..., D)``."""
        return F.linear(hidden, self.weight)


class ConceptDelta(nn.Module):
    """Float32 changes to every key and value projection, and one V* per text encoder.

    Args:
        projections: ``k.<layer>`` and ``v.<layer>``, as ``cross_attention_projections`` returns them.
        modifier: Initial V* of each text encoder, ``(D,)`` each.
        rank: None for full changes.

    Raises:
        ValueError: If ``rank`` is not positive.
    """

    def __init__(
        self, projections: Mapping[str, nn.Linear], modifier: Sequence[Tensor], rank: int | None = None
    ) -> None:
        super().__init__()
        if rank is not None and rank < 1:
            raise ValueError(f"method.rank is {rank}; give a positive number, or null for full changes")
        # Module names may not contain dots.
        self.changes = nn.ModuleDict(
            {_key(name): _change(linear.out_features, linear.in_features, rank) for name, linear in projections.items()}
        )
        self.modifier = nn.ParameterList([nn.Parameter(vector.clone().float()) for vector in modifier])

    def forward(self, name: str, hidden: Tensor) -> Tensor:
        """What the change adds to one projection of ``hidden`` ``(..., C)``, in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.changes[_key(name)](hidden.float())


def _change(out_features: int, in_features: int, rank: int | None) -> nn.Module:
    return Full(out_features, in_features) if rank is None else LowRank(out_features, in_features, rank)


def _key(name: str) -> str:
    return name.replace(".", "/")
