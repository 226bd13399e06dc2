"""Where a scale-wise pipeline works, and what it does to need less memory there."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_accelerate_available

from src.modules.device import usable_device

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


@dataclass(frozen=True)
class Placement:
    """Of all parts of a pipeline.

    Attributes:
        device: As torch names it, or ``auto``.
        offload: Whether parts wait in main memory and are on the device one at a time; needs the package accelerate.
        tiling: Whether large images are decoded in overlapping squares, see ``TiledDecoding``.
        channels_last: Memory layout of the image tokenizer's convolutions, the faster one on GPUs.

    Raises:
        ValueError: If torch cannot use the device, or accelerate is missing.
    """

    device: str = "cpu"
    offload: bool = False
    tiling: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Refuse what could not be done, before weights are read."""
        usable_device(self.device, "backbone.placement.device")
        if self.offload and not is_accelerate_available():
            raise ValueError("backbone.placement.offload=true needs the package accelerate; pip install accelerate")

    def placed(self, pipeline: Pipeline) -> Pipeline:
        """The pipeline itself, moved."""
        device = usable_device(self.device, "backbone.placement.device")
        if self.tiling:
            pipeline.vae.enable_tiling()
        if self.channels_last:
            pipeline.vae.to(memory_format=torch.channels_last)
        if self.offload:
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
        return pipeline
