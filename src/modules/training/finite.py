"""Stop a training at the first number that is not finite, and keep what was saved before."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import lightning as L
import torch
from torch import Tensor

from src.data.finite import NotFiniteError, is_finite


class FiniteModule(L.LightningModule):
    """A module whose training stops at the first loss, gradient or weight that is not finite, on all processes.

    Nothing is saved then, not even by a ``ModelCheckpoint`` that saves on exceptions: earlier checkpoints stay.
    """

    def on_before_backward(self, loss: Tensor) -> None:
        """Look at the loss.

        Raises:
            ValueError: If it is not finite, on any process.
        """
        if not self.trainer.strategy.reduce_boolean_decision(is_finite(loss.detach()), all=True):
            self._stop("the loss", self.global_step + 1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the gradients, which all processes share; a gradient scaler skips such steps itself.

        Raises:
            ValueError: If one is not finite.
        """
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norms = torch._foreach_norm([one.grad for one in parameters if one.grad is not None])
        if norms and not is_finite(torch.stack(norms)):
            self._stop("a gradient", self.global_step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Look at all weights before they are saved.

        Raises:
            ValueError: If one is not finite.
        """
        if name := infinite(checkpoint["state_dict"]):
            self._stop(f"the weight {name}", self.global_step)

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """While active, stop the training where a model in it computes what is not finite, such as a picture.

        Raises:
            ValueError: If it does.
        """
        try:
            yield
        except NotFiniteError as error:
            if self._trainer is None:
                raise
            self._stop(f"what the model computes ({error})", self.global_step)

    def _stop(self, what: str, step: int) -> NoReturn:
        for callback in self.trainer.checkpoint_callbacks:
            if hasattr(callback, "save_on_exception"):
                callback.save_on_exception = False
        rates = {group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups}
        told = ", ".join(f"{rate:g}" for rate in sorted(rates))
        raise ValueError(
            f"{what} is not finite at step {step}: lower the learning rate, method.optimizer.lr and method.rates (here "
            f"{told}), or take trainer.precision=bf16-mixed or 32-true; what was saved before is kept"
        )


def infinite(weights: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first weight that is not finite; None if all are."""
    return next((name.removeprefix("learner.") for name, tensor in weights.items() if not is_finite(tensor)), None)


def refuse_infinite(weights: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are not finite.

    Args:
        weights: Name to weight.
        what: What is not done with them, such as "exported".

    Raises:
        ValueError: If there is one.
    """
    if name := infinite(weights):
        raise ValueError(
            f"the weight {name} is not finite, so nothing is {what}; train anew with a lower learning rate"
        )
