"""How varied the samples of one prompt are to the eye."""

from collections.abc import Sequence
from functools import cached_property
from itertools import combinations

import torch
from PIL import Image
from torch import nn

from src.eval.set_metrics import to_uint8
from src.eval.weights import fetching


class PerceptualDiversity:
    """Mean LPIPS (arXiv 1801.03924) between samples of one prompt, DIV of DreamBooth; higher is more varied.

    Args:
        network: Two batches of ``(N, 3, H, W)`` in [-1, 1] to ``N`` distances; None for LPIPS with AlexNet, loaded when
            first used.
    """

    def __init__(self, network: nn.Module | None = None) -> None:
        self.given = network

    @cached_property
    def network(self) -> nn.Module:
        """What gives the distances.

        Raises:
            ValueError: If LPIPS is asked for and its weights cannot be had.
        """
        return _lpips() if self.given is None else self.given

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> float:
        """Mean over all pairs.

        Raises:
            ValueError: If there is only one image, or sizes differ.
        """
        sizes = sorted({image.size for image in images})
        if len(images) < 2 or len(sizes) > 1:
            raise ValueError(f"LPIPS compares two or more images of one size, got {len(images)} of sizes {sizes}")
        pixel_values = torch.stack([to_uint8(image) for image in images]) / 127.5 - 1
        pairs = [
            self.network(*pixel_values[list(pair), None]).flatten() for pair in combinations(range(len(images)), 2)
        ]
        return float(torch.cat(pairs).mean())


def _lpips() -> nn.Module:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    with fetching("the AlexNet of LPIPS"):
        return LearnedPerceptualImagePatchSimilarity(net_type="alex").net
