"""Check that all processes of a training have the same configuration, and print their effective batch."""

import hashlib
import sys

import lightning as L
import torch


class Ranks(L.Callback):
    """Refuses, before the first step, processes that were started differently, and prints the effective batch.

    Args:
        settings: The configuration of this process as text.
    """

    def __init__(self, settings: str) -> None:
        self.number = int.from_bytes(hashlib.sha256(settings.encode()).digest()[:7])

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare the configurations of all processes.

        Raises:
            ValueError: On every rank, if the configurations differ.
        """
        number = torch.tensor(self.number, device=trainer.strategy.root_device)
        numbers = trainer.strategy.all_gather(number).reshape(-1).tolist()
        different = [str(rank) for rank, each in enumerate(numbers) if each != numbers[0]]
        if different:
            raise ValueError(
                f"{len(numbers)} processes train together, but the configuration of rank {', '.join(different)} is not "
                "that of rank 0; give the same command and the same files to all"
            )
        if trainer.is_global_zero:
            print(effective_batch(trainer), file=sys.stderr)


def effective_batch(trainer: L.Trainer) -> str:
    """Say how many samples one step of the optimiser sees, and why."""
    each: int = trainer.datamodule.batch_size  # type: ignore[attr-defined]
    ranks, batches = trainer.world_size, trainer.accumulate_grad_batches
    total = each * ranks * batches
    return f"effective batch: {total} = {each} per process x {ranks} process(es) x {batches} accumulated"
