"""Images of any shape as an autoencoder or tokenizer takes them."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

_log = logging.getLogger(__name__)
SAME_SHAPE = 0.01
"""Aspect ratios that differ less than this are not worth a word."""


def fitted(images: Sequence[Image.Image], height: int, width: int) -> Tensor:
    """RGB images, resized to cover the frame (Lanczos) and cropped to its centre: ``(B, 3, H, W)`` in [-1, 1]."""
    for image in images:
        if abs(image.width / image.height - width / height) > SAME_SHAPE:
            _log.warning(
                "an image of %d x %d pixels is cropped in the centre to the shape of %d x %d",
                *image.size,
                width,
                height,
            )
            break
    pixels = np.stack(
        [np.asarray(ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)) for image in images]
    )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
