"""Data order as a pure function of (seed, step, rank), so that a resumed run sees the same data."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler


class Draw(NamedTuple):
    """One element of a training batch: the index of its item, its step, and its position in the global batch."""

    index: int  # type: ignore[assignment]  # instead of tuple.index, which a draw has no use for
    step: int
    position: int


def batches_of(trainer: Any) -> tuple[int, int]:
    """Return the number of batches of a whole training and of those already done; a step may accumulate several."""
    each = trainer.accumulate_grad_batches
    return trainer.max_steps * each, trainer.global_step * each


def share_of(trainer: Any, batch_size: int, seed: int) -> dict[str, int]:
    """What a sampler has to know of a training: its length, where it goes on, and the share of this process."""
    num_steps, first_step = batches_of(trainer)
    ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
    return {"batch_size": batch_size, "num_steps": num_steps, "seed": seed, "first_step": first_step, **ranks}


class StepBatchSampler(Sampler[list[Draw]]):
    """Yields batches of draws for the steps ``first_step ... num_steps - 1``, where a step is a batch.

    Each epoch visits the items in a new permutation; a batch may span two epochs. Each rank takes its own contiguous
    share of a global batch of ``batch_size * world_size``.

    Args:
        num_items: Size of the dataset.
        batch_size: Items per batch and rank.
        num_steps: Length of the whole training, not of the rest of it.
        seed: Seed of the permutations.
        first_step: Step to go on at after a resume.
        rank: Number of this process.
        world_size: Number of processes.

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


class BucketBatchSampler(Sampler[list[Draw]]):
    """Yields batches from one bucket each, the same on all ranks, for the steps ``first_step ... num_steps - 1``.

    Each bucket is visited as ``StepBatchSampler`` visits a whole dataset: every item once in each of its epochs, in a
    new order. A bucket is chosen in proportion to its size, so that no item is seen more often than another.

    Args:
        buckets: Item numbers of each bucket.
        batch_size: Items per batch and rank.
        num_steps: Length of the whole training, not of the rest of it.
        seed: Seed of the order.
        first_step: Step to go on at after a resume.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If there is nothing to draw from.
    """

    def __init__(
        self,
        buckets: Sequence[Sequence[int]],
        batch_size: int,
        num_steps: int,
        seed: int = 0,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.buckets = [bucket for bucket in buckets if len(bucket)]
        if not self.buckets:
            raise ValueError("there is no image to draw from")
        self.batch_size, self.num_steps, self.seed, self.first_step = batch_size, num_steps, seed, first_step
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield one list of draws per remaining step."""
        chosen = self._chosen_buckets()
        taken = [0] * len(self.buckets)
        for _ in range(self.first_step):
            taken[next(chosen)] += 1
        batches = [iter(self._sampler(len(bucket), start)) for bucket, start in zip(self.buckets, taken, strict=True)]
        for step in range(self.first_step, self.num_steps):
            bucket = next(chosen)
            yield [Draw(self.buckets[bucket][draw.index], step, draw.position) for draw in next(batches[bucket])]

    def __len__(self) -> int:
        """Steps in all: a resumed Lightning loop goes on counting from the first."""
        return self.num_steps

    def _chosen_buckets(self) -> Iterator[int]:
        """Yield the bucket of each step: the one that is furthest behind its share."""
        sizes = [len(bucket) for bucket in self.buckets]
        owed = [0] * len(sizes)
        while True:
            owed = [due + size for due, size in zip(owed, sizes, strict=True)]
            bucket = max(range(len(sizes)), key=lambda each: owed[each])
            owed[bucket] -= sum(sizes)
            yield bucket

    def _sampler(self, size: int, first: int) -> StepBatchSampler:
        return StepBatchSampler(size, self.batch_size, self.num_steps, self.seed, first, self.rank, self.world_size)


class SteppedData(L.LightningDataModule):
    """Loads two datasets that take a whole batch of draws at a time (``__getitems__``).

    Subclasses set ``train`` and ``val`` in their constructor or in ``setup``; an empty ``val`` means no validation.

    Args:
        batch_size: Items per step and rank; two processes with half of it see the same global batches.
        seed: Seed of the order.
        num_workers: Number of processes that prepare batches; 0 to do it in the training process.
    """

    incidental: ClassVar[tuple[str, ...]] = ("num_val", "num_workers")

    train: Dataset
    val: Dataset

    def __init__(self, batch_size: int, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers

    def train_dataloader(self) -> DataLoader:
        """Load batches from the trainer's current step on."""
        return self._loader(self.train, self.train_batches())

    def val_dataloader(self) -> DataLoader | list:
        """Load the validation items in order, the same on every rank."""
        return self._loader(self.val, self.val_batches()) if self._size(self.val) else []

    def train_batches(self) -> Iterable[list[Draw]]:
        """Return the draws of the remaining steps, batch by batch."""
        return StepBatchSampler(self._size(self.train), **share_of(self.trainer, self.batch_size, self.seed))

    def val_batches(self) -> Iterable[list[Draw]]:
        """Return the validation draws, batch by batch; their positions differ."""
        draws = [Draw(index, 0, index) for index in range(self._size(self.val))]
        return [draws[start : start + self.batch_size] for start in range(0, len(draws), self.batch_size)]

    def _size(self, items: Dataset) -> int:
        return len(items)  # type: ignore[arg-type]  # torch's Dataset leaves the length to its subclasses.

    def _loader(self, items: Dataset, batches: Iterable[list[Draw]]) -> DataLoader:
        # A loader draws a seed when it starts. With its own generator it leaves the training's random state alone.
        return DataLoader(
            items,
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=_whole,
            num_workers=self.num_workers,
            generator=torch.Generator(),
        )


def _whole(batch: Any) -> Any:
    return batch
