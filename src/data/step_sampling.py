"""Data order as a pure function of (seed, step, rank), so that a resumed run sees exactly what it would have seen."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One element of one training batch: which item, and the coordinates that seed its augmentation."""

    index: int  # type: ignore[assignment]  # instead of tuple.index, which a draw has no use for
    step: int
    position: int


def batches_of(trainer: Any) -> tuple[int, int]:
    """Batches of a whole training, and how many of them are behind it; an accumulating step takes several."""
    each = trainer.accumulate_grad_batches
    return trainer.max_steps * each, trainer.global_step * each


class StepBatchSampler(Sampler[list[Draw]]):
    """Batches of draws for the steps ``first_step ... num_steps - 1``; a step here is a batch, see ``batches_of``.

    Items are visited in a new permutation each epoch; batches run across epoch ends. With several ranks, each takes
    its own contiguous share of a global batch of ``batch_size * world_size``.

    Args:
        num_items: Size of the dataset.
        batch_size: Items per batch and rank.
        num_steps: Total length of the training, not what is left of it.
        seed: Of the permutations.
        first_step: Where to go on after a resume.
        rank: This process.
        world_size: All processes.

    Raises:
        ValueError: If there is nothing to draw from.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        num_steps: int,
        seed: int = 0,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_items < 1 or batch_size < 1:
            raise ValueError(f"need at least one item and one per batch, got {num_items} items, batch {batch_size}")
        self.num_items, self.batch_size, self.num_steps = num_items, batch_size, num_steps
        self.seed, self.first_step, self.rank, self.world_size = seed, first_step, rank, world_size
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield one list of draws per remaining step."""
        for step in range(self.first_step, self.num_steps):
            start = (step * self.world_size + self.rank) * self.batch_size
            yield [
                Draw(self._item(at), step, self.rank * self.batch_size + position)
                for position, at in enumerate(range(start, start + self.batch_size))
            ]

    def __len__(self) -> int:
        """Steps in all: a resumed Lightning loop goes on counting from the first."""
        return self.num_steps

    def _item(self, at: int) -> int:
        epoch, offset = divmod(at, self.num_items)
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.num_items))
        return int(self._order[1][offset])
