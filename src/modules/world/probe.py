"""Train the probe, a classifier of object, colour, pattern and background that is only used to measure images."""

from typing import Any

import timm
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from src.data.ranges import Seed
from src.data.world.datamodules import ATTRIBUTES
from src.modules.training.learner import Learner, TrainingRecord
from src.modules.world.self_distillation import save_timm_folder


class ProbeTraining(Learner):
    """Trains a timm classifier whose outputs are the words of all attributes, one attribute after another.

    Training images are blurred by a random share, because generated images are softer than rendered ones, and softness
    must not change the answer.

    Args:
        export_dir: Folder that receives the classifier (``local-dir:`` of ``timm.create_model``).
        architecture: Name of a timm model.
        model_args: Arguments of the model's constructor.
        seed: Seed of the initial weights and the blur.
    """

    def __init__(self, export_dir: str, architecture: str, model_args: dict[str, Any], seed: Seed = 0) -> None:
        super().__init__()
        self.export_dir, self.architecture, self.model_args, self.seed = export_dir, architecture, model_args, seed
        torch.manual_seed(seed)
        self.sizes = [len(words) for words in ATTRIBUTES.values()]
        model = timm.create_model(architecture, num_classes=sum(self.sizes), **model_args)
        # Half-precision convolutions on CPUs are twice as fast with channels last.
        self.model = model.to(memory_format=torch.channels_last)

    def losses(self, batch: dict[str, Any], generators: list[Generator]) -> Tensor:
        """Compute the sum of the attributes' cross-entropies."""
        pixel_values = soften(batch["pixel_values"], generators[0])
        logits = self.model(pixel_values.contiguous(memory_format=torch.channels_last)).float().split(self.sizes, -1)
        losses = [F.cross_entropy(one, labels) for one, labels in zip(logits, batch["labels"].T, strict=True)]
        return torch.stack(losses).sum()

    def validate(self, batch: dict[str, Any], generators: list[Generator]) -> dict[str, Tensor]:
        """Tell for each attribute whether the answers are right, ``(B,)``."""
        logits = self.model(batch["pixel_values"]).split(self.sizes, -1)
        answers = zip(ATTRIBUTES, logits, batch["labels"].T, strict=True)
        return {name: (one.argmax(-1) == labels).float() for name, one, labels in answers}

    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write the classifier as a timm folder."""
        save_timm_folder(self.export_dir, self.model, self.architecture, self.model_args)
        return {"probe": self.export_dir}


def soften(pixel_values: Tensor, generator: Generator) -> Tensor:
    """Blend each image with its half-resolution version, by a random share."""
    share = torch.rand(len(pixel_values), 1, 1, 1, generator=generator).to(pixel_values)
    half = F.interpolate(F.avg_pool2d(pixel_values, 2), scale_factor=2, mode="bilinear")
    return torch.lerp(pixel_values, half, share)
