"""Trains the probe on ground truth: it reads object, colour, pattern and background off an image, only to measure."""

from typing import Any

import lightning as L
import timm
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor
from torch.nn import functional as F

from src.data.world.datamodules import ATTRIBUTES
from src.modules.training.diffusion import step_generator
from src.modules.world.self_distillation import save_timm_folder


class ProbeTraining(L.LightningModule):
    """A timm classifier whose outputs are the words of all attributes, one after another.

    Half of a training image's sharpness may be gone: samples of a generator are softer than renders, and softness must
    not change the answer.

    Args:
        export_dir: Folder that receives the classifier (``local-dir:`` of ``timm.create_model``).
        architecture: Name of a timm model.
        model_args: Its constructor's arguments.
        learning_rate: Peak; linear warm-up, cosine decay over ``max_steps``.
        seed: Of initial weights and of the blur.
    """

    def __init__(
        self,
        export_dir: str,
        architecture: str,
        model_args: dict[str, Any],
        learning_rate: float = 2e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(seed)
        self.sizes = [len(words) for words in ATTRIBUTES.values()]
        model = timm.create_model(architecture, num_classes=sum(self.sizes), **model_args)
        # Half-precision convolutions on CPUs are twice as fast with channels last.
        self.model = model.to(memory_format=torch.channels_last)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Sum of the attributes' cross-entropies."""
        generator = step_generator(self.hparams.seed, int(batch["step"]), self.global_rank)
        pixel_values = soften(batch["pixel_values"], generator)
        logits = self.model(pixel_values.contiguous(memory_format=torch.channels_last)).float().split(self.sizes, -1)
        losses = [F.cross_entropy(one, labels) for one, labels in zip(logits, batch["labels"].T, strict=True)]
        loss = torch.stack(losses).sum()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Share of right answers per attribute."""
        logits = self.model(batch["pixel_values"]).split(self.sizes, -1)
        for name, one, labels in zip(ATTRIBUTES, logits, batch["labels"].T, strict=True):
            share = (one.argmax(-1) == labels).float().mean()
            self.log(f"val/{name}", share, batch_size=len(labels), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate, weight_decay=0.05)
        steps = self.trainer.max_steps
        schedule = get_cosine_schedule_with_warmup(optimizer, min(50, steps // 10), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self) -> dict[str, str]:
        """Write the classifier as a timm folder."""
        folder = self.hparams.export_dir
        save_timm_folder(folder, self.model, self.hparams.architecture, self.hparams.model_args)
        return {"probe": folder}


def soften(pixel_values: Tensor, generator: torch.Generator) -> Tensor:
    """Blend each image with its half-resolution self, by a random share."""
    share = torch.rand(len(pixel_values), 1, 1, 1, generator=generator).to(pixel_values)
    half = F.interpolate(F.avg_pool2d(pixel_values, 2), scale_factor=2, mode="bilinear")
    return torch.lerp(pixel_values, half, share)
