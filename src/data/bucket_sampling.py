"""Batches of one bucket each, whose order is a pure function of (seed, step, rank)."""

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from src.data.step_sampling import Draw, StepBatchSampler


class BucketBatchSampler(Sampler[list[Draw]]):
    """Batches for the steps ``first_step ... num_steps - 1``; all ranks draw from the same bucket in the same step.

    Each bucket is visited as ``StepBatchSampler`` visits a whole dataset: every item once in each of its epochs, in a
    new order. A bucket's turn comes in proportion to its size, so that no item is seen more often than another.

    Args:
        buckets: Item numbers by bucket.
        batch_size: Items per batch and rank.
        num_steps: Total length of the training, not what is left of it.
        seed: Of the order.
        first_step: Where to go on after a resume.
        rank: This process.
        world_size: All processes.

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
        turns = self._turns()
        taken = [0] * len(self.buckets)
        for _ in range(self.first_step):
            taken[next(turns)] += 1
        batches = [iter(self._sampler(len(bucket), start)) for bucket, start in zip(self.buckets, taken, strict=True)]
        for step in range(self.first_step, self.num_steps):
            turn = next(turns)
            yield [Draw(self.buckets[turn][draw.index], step, draw.position) for draw in next(batches[turn])]

    def __len__(self) -> int:
        """Steps in all: a resumed Lightning loop goes on counting from the first."""
        return self.num_steps

    def _turns(self) -> Iterator[int]:
        """Whose turn it is, step by step: the bucket that is furthest behind its share."""
        sizes = [len(bucket) for bucket in self.buckets]
        owed = [0] * len(sizes)
        while True:
            owed = [due + size for due, size in zip(owed, sizes, strict=True)]
            turn = max(range(len(sizes)), key=lambda bucket: owed[bucket])
            owed[turn] -= sum(sizes)
            yield turn

    def _sampler(self, size: int, first: int) -> StepBatchSampler:
        return StepBatchSampler(size, self.batch_size, self.num_steps, self.seed, first, self.rank, self.world_size)
