"""Data whose order depends on the seed, the step and the rank alone: the part that all such data modules share."""

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from src.data.step_sampling import Draw, StepBatchSampler, batches_of


class SteppedData(L.LightningDataModule):
    """Loaders over two datasets that take a whole batch of draws at a time (``__getitems__``).

    Subclasses set ``train`` and ``val`` in their constructor or in ``setup``; an empty ``val`` means no validation.

    Args:
        batch_size: Items per step and rank: two processes with half of it see the global batches of one with all.
        seed: Of the order.
        num_workers: Processes that prepare batches; 0 does it in the training process.
    """

    train: Dataset
    val: Dataset

    def __init__(self, batch_size: int, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers

    def train_dataloader(self) -> DataLoader:
        """Batches from the trainer's current step on."""
        return self._loader(self.train, self.train_batches())

    def val_dataloader(self) -> DataLoader | list:
        """The validation items in order, the same ones on every rank."""
        return self._loader(self.val, self.val_batches()) if self._size(self.val) else []

    def train_batches(self) -> Iterable[list[Draw]]:
        """Which items the coming steps take."""
        trainer = self.trainer
        num_batches, first_batch = batches_of(trainer)
        return StepBatchSampler(
            self._size(self.train),
            self.batch_size,
            num_batches,
            self.seed,
            first_batch,
            trainer.global_rank,
            trainer.world_size,
        )

    def val_batches(self) -> Iterable[list[Draw]]:
        """Validation draws by batch; the position tells them apart."""
        draws = [Draw(index, 0, index) for index in range(self._size(self.val))]
        return [draws[start : start + self.batch_size] for start in range(0, len(draws), self.batch_size)]

    def _size(self, items: Dataset) -> int:
        return len(items)  # type: ignore[arg-type]  # torch's Dataset leaves the length to its subclasses.

    def _loader(self, items: Dataset, batches: Iterable[list[Draw]]) -> DataLoader:
        # Every loader draws a seed when it starts; from a generator of its own, the training's random state stays.
        return DataLoader(
            items,
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=_whole,
            num_workers=self.num_workers,
            generator=torch.Generator(),
        )


def _whole(batch: Any) -> Any:
    return batch
