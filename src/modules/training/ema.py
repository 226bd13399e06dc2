"""A LightningModule that follows its weights with an exponential average, which is what it exports."""

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning as L
from diffusers.training_utils import EMAModel
from torch import nn


class AveragedModule(L.LightningModule):
    """Keeps ``ema`` up to date, on the module's device and in its checkpoints; call ``follow`` in the constructor."""

    def follow(self, parameters: list[nn.Parameter], decay: float) -> None:
        """Average these parameters from now on."""
        self.averaged = parameters
        self.ema = EMAModel(parameters, decay=decay)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """While active, the followed parameters are their averages; afterwards they are bit for bit what they were."""
        self.ema.store(self.averaged)
        try:
            self.ema.copy_to(self.averaged)
            yield
        finally:
            self.ema.restore(self.averaged)

    def on_fit_start(self) -> None:
        """Bring the averaged weights to the device."""
        self.ema.to(self.device)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Follow the weights at once: by ``on_train_batch_end`` the checkpoint of this step is already written."""
        super().optimizer_step(*args, **kwargs)
        self.ema.step(self.averaged)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the averaged weights and the step of the average."""
        checkpoint["ema"] = {"shadow": self.ema.shadow_params, "step": self.ema.optimization_step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the averaged weights."""
        self.ema.shadow_params = checkpoint["ema"]["shadow"]
        self.ema.optimization_step = checkpoint["ema"]["step"]
