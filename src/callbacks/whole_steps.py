"""A training that is stopped goes on as if nothing had happened: its checkpoints hold whole steps."""

import signal
import threading
from typing import Any

import lightning as L

from src.callbacks.trackers.wandb import notice


class WholeSteps(L.Callback):
    """Ends a training between two steps after Ctrl-C, and keeps a step that was not finished out of checkpoints.

    Lightning would stop in the middle of a step, count its batch, and let all that a resumed training logs and
    validates come one step late from then on. A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.asked, self.speaks = False, True
        self.former: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to listen for Ctrl-C; only the main thread can."""
        self.asked, self.speaks = False, trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():
            self.former = signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Stop if somebody asked for it, all processes before the same step.

        Raises:
            KeyboardInterrupt: Before the first step that would begin after Ctrl-C.
        """
        if _batches(trainer) % trainer.accumulate_grad_batches:
            return
        if trainer.world_size > 1:
            self.asked = trainer.strategy.reduce_boolean_decision(self.asked, all=False)
        if self.asked:
            if trainer.is_global_zero:
                notice(f"stopped after step {trainer.global_step}; the same command with resume=true goes on there")
            raise KeyboardInterrupt

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen no more."""
        self._listen_no_more()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Listen no more."""
        self._listen_no_more()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count as after the last whole step, in Lightning's way, if a batch was begun since."""
        loop = checkpoint["loops"]["fit_loop"]
        total, current = (loop["epoch_loop.batch_progress"][which] for which in ("total", "current"))
        if total["ready"] == total["processed"]:
            return
        unfinished = current["processed"] % trainer.accumulate_grad_batches
        # What Lightning itself saves at the end of a step, it saves before it counts the step as complete.
        uncounted = int(current["processed"] > unfinished)
        for counts in (total, current):
            whole = counts["processed"] - unfinished
            counts.update(ready=whole, started=whole, processed=whole, completed=whole - uncounted)
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= uncounted

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        self._listen_no_more()
        if self.speaks:
            notice("stopping at the end of this step; press Ctrl-C again to stop at once")

    def _listen_no_more(self) -> None:
        if self.former is not None:
            signal.signal(signal.SIGINT, self.former)
            self.former = None


def _batches(trainer: L.Trainer) -> int:
    """Batches of this epoch that were finished."""
    finished: int = trainer.fit_loop.epoch_loop.batch_progress.current.processed
    return finished
