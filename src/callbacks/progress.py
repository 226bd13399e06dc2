"""How a training gets on: its bar, the batch that its processes share, its speed, its memory, the time it needs."""

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import BarColumn
from rich.table import Column
from torch import Tensor

from src.data.peak_memory import peak_memory


class StepProgress(RichProgressBar):
    """Lightning's bar on one line, which says what it counts; by steps, "Epoch 0/-2" says nothing.

    Beside it stands the loss; the logs hold the other metrics.
    """

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the loss, without the number of a logger's folder."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name == "train/loss"}

    def _init_progress(self, trainer: L.Trainer) -> None:
        super()._init_progress(trainer)
        if self.is_enabled:
            # In a narrow terminal the bar gives way, then what does not fit is cut; nothing is stacked in lines.
            for column in self.progress.columns:
                if not isinstance(column, BarColumn):
                    column._table_column = Column(no_wrap=True, overflow="ellipsis")

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training".ljust(len(self.validation_description))


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


GIGABYTE = 10**9


class Throughput(L.Callback):
    """Logs ``perf/it_s``, ``perf/samples_s``, ``perf/peak_memory_gb`` and ``perf/hours_left`` of any training.

    Rates are measured by the wall clock between two logged steps, with validation, sampling and checkpoints, as the
    remaining time is. The first step does not count, because it includes all warm-up. Memory is the most that the first
    process has allocated on its GPU, or without a GPU its largest resident set, in 10^9 bytes.
    """

    def __init__(self) -> None:
        self.started: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget an earlier training."""
        self.started = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count samples, and log as often as Lightning logs losses."""
        if self.started is None:
            self._restart(trainer.global_step)
            return
        self.samples += samples_in(batch) * trainer.world_size
        steps = trainer.global_step - self.first_step
        if steps and trainer.global_step % trainer.log_every_n_steps == 0:
            self._log(trainer, pl_module, steps)
            self._restart(trainer.global_step)

    def _restart(self, step: int) -> None:
        self.started, self.first_step, self.samples = time.perf_counter(), step, 0

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, steps: int) -> None:
        assert self.started is not None
        seconds = time.perf_counter() - self.started
        metrics = {
            "perf/it_s": steps / seconds,
            "perf/samples_s": self.samples / seconds,
            "perf/peak_memory_gb": peak_memory(pl_module.device) / GIGABYTE,
        }
        if trainer.max_steps > 0:
            metrics["perf/hours_left"] = (trainer.max_steps - trainer.global_step) * seconds / steps / 3600
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def samples_in(batch: Any) -> int:
    """Return the size of a batch of any structure: the longest first dimension in it."""
    return max(_lengths(batch), default=0)


def _lengths(batch: Any) -> Iterator[int]:
    if isinstance(batch, Tensor):
        yield len(batch) if batch.ndim else 1
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from _lengths(part)
    elif isinstance(batch, tuple):
        for part in batch:
            yield from _lengths(part)
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        # A list may hold one entry per sample, or, from torch's own collation, one tensor per field.
        fields = [len(part) for part in batch if isinstance(part, Tensor) and part.ndim]
        yield from fields or [len(batch)]
