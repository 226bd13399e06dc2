"""Buckets: a few image sizes of about one area, to which images are cropped so that a batch has one shape."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

CELL = 8
"""Side in pixels of a latent cell of the usual autoencoders."""
Size = tuple[int, int]
"""Width and height in pixels."""


def aspect_buckets(resolution: int, max_ratio: float = 1.0, step: int = 64) -> list[Size]:
    """List sizes of at most ``resolution ** 2`` pixels with sides that ``step`` divides, from upright to broad.

    Args:
        resolution: Side of the square bucket.
        max_ratio: Largest ratio of the longer to the shorter side; 1 allows only the square.
        step: Difference between neighbouring sides, a multiple of 8; 64 suits every UNet of Stable Diffusion.

    Raises:
        ValueError: If a latent grid or the square is impossible.
    """
    if step % CELL or step < CELL or resolution % step or resolution < step:
        raise ValueError(
            f"resolution {resolution} and bucket_step {step} do not go together: the step must be a multiple of {CELL} "
            "and divide the resolution"
        )
    if max_ratio < 1:
        raise ValueError(f"max_ratio is {max_ratio}; it is the longer side over the shorter, so give at least 1")
    found = {(resolution, resolution)}
    for width in range(resolution, int(resolution * math.sqrt(max_ratio)) + 1, step):
        height = resolution**2 // width // step * step
        if height and width / height <= max_ratio:
            found |= {(width, height), (height, width)}
    return sorted(found)


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """Return the bucket whose shape is closest to that of an image, so that least is cut off."""

    def distance(bucket: Size) -> float:
        return abs(math.log(bucket[0] / bucket[1] * size[1] / size[0]))

    return min(buckets, key=distance)


def fitted(image: Image.Image, bucket: Size) -> np.ndarray:
    """Scale an image to cover a bucket, and crop it to the bucket in the centre: uint8 ``(H, W, 3)``."""
    scaled, left, top = _placement(image.size, bucket)
    pixels = np.asarray(image.convert("RGB").resize(scaled, Image.Resampling.LANCZOS))
    return pixels[top : top + bucket[1], left : left + bucket[0]]


def size_ids(size: Size, bucket: Size) -> list[int]:
    """Return SDXL's time ids: height and width before, top and left of the crop, height and width after."""
    _, left, top = _placement(size, bucket)
    return [size[1], size[0], top, left, bucket[1], bucket[0]]


def _placement(size: Size, bucket: Size) -> tuple[Size, int, int]:
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    width, height = (max(side, round(length * scale)) for length, side in zip(size, bucket, strict=True))
    return (width, height), (width - bucket[0]) // 2, (height - bucket[1]) // 2
