"""From a picture to what a network sees. One path for all encoders, since resizing alone can move a score."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """PIL image to network input; Pillow filters when it shrinks, so that nothing aliases.

    Attributes:
        resize: Length of the shorter side after the bicubic resize.
        crop: Side of the square taken from the centre.
        mean: Per channel, of values in [0, 1].
        std: Per channel.
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        """Float32 ``(3, crop, crop)``."""
        image = image.convert("RGB")
        # The longer side is cut, not rounded, as torchvision does.
        width, height = (int(self.resize * side / min(image.size)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (round((side - self.crop) / 2) for side in (width, height))
        pixels = np.asarray(image.crop((left, top, left + self.crop, top + self.crop)), dtype=np.float32) / 255
        normalised = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))

    def __str__(self) -> str:
        """Everything that could change a number."""
        mean, std = (",".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"rgb, shorter side {self.resize} bicubic (pil), centre {self.crop}, mean {mean}, std {std}"
