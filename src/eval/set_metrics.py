"""FID and KID: numbers of a whole set of generated images against a set of real ones."""

import logging
import warnings
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from src.eval.read_ahead import Picture, read_ahead
from src.eval.weights import fetching

INCEPTION_FEATURES = "2048"


def to_uint8(image: Image.Image) -> Tensor:
    """Uint8 ``(3, H, W)``, as the Inception network of FID takes it; it resizes by itself."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy())


class SetMetrics:
    """FID (arXiv 1706.08500) and KID (arXiv 1801.01401) by torchmetrics.

    Args:
        network: Input to features ``(N, D)``; None for the Inception-v3 of published numbers, loaded when first used.
        preprocess: Image to what ``network`` takes, without the batch dimension.
        subset_size: Images per subset of KID.
        num_subsets: Subsets of KID.
        seed: Of the subsets.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        preprocess: Callable[[Image.Image], Tensor] = to_uint8,
        subset_size: int = 100,
        num_subsets: int = 100,
        seed: int = 0,
    ) -> None:
        self.given, self.preprocess = network, preprocess
        self.subset_size, self.num_subsets, self.seed = subset_size, num_subsets, seed

    @cached_property
    def network(self) -> nn.Module:
        """What gives the features.

        Raises:
            ValueError: If Inception-v3 is asked for and cannot be had.
        """
        return (_inception() if self.given is None else self.given).eval()

    def fid(self, generated: Iterable[Picture], references: Iterable[Picture]) -> float:
        """Frechet distance of the normal distributions of both sets; lower is better.

        Raises:
            ValueError: If a set has fewer than two images.
        """
        from torchmetrics.image.fid import FrechetInceptionDistance

        ours, real = self.features(generated), self.features(references)
        fewest, dimensions = min(len(ours), len(real)), ours.shape[1]
        if fewest < 2:
            raise ValueError(f"FID needs at least two images on each side, got {len(ours)} generated, {len(real)} real")
        if fewest <= dimensions:
            text = "FID of %d images in %d dimensions is far too high; KID does not depend on the number"
            logging.getLogger(__name__).warning(text, fewest, dimensions)
        metric = FrechetInceptionDistance(feature=_given_features(dimensions)).set_dtype(torch.float64)
        metric.update(ours, real=False)
        metric.update(real, real=True)
        return float(metric.compute())

    def kid(self, generated: Iterable[Picture], references: Iterable[Picture]) -> tuple[float, float]:
        """Mean and standard deviation over subsets of the squared kernel distance; lower is better.

        Raises:
            ValueError: If a set has fewer images than a subset.
        """
        from torchmetrics.image.kid import KernelInceptionDistance

        ours, real = self.features(generated), self.features(references)
        self.check_subsets(len(ours), len(real))
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # That it keeps all features is no news: they are here already.
            warnings.simplefilter("ignore", UserWarning)
            torch.manual_seed(self.seed)
            network = _given_features(ours.shape[1])
            metric = KernelInceptionDistance(network, subsets=self.num_subsets, subset_size=self.subset_size)
            metric.update(ours, real=False)
            metric.update(real, real=True)
            mean, deviation = metric.compute()
        return float(mean), float(deviation)

    def check_subsets(self, num_generated: int, num_real: int) -> None:
        """Refuse sets that are smaller than a subset of KID.

        Raises:
            ValueError: If one is.
        """
        fewest = min(num_generated, num_real)
        if fewest < self.subset_size:
            raise ValueError(
                f"KID draws subsets of {self.subset_size} images, but there are {num_generated} generated and "
                f"{num_real} real ones; set subset_size to at most {fewest}"
            )

    @torch.inference_mode()
    def features(self, images: Iterable[Picture]) -> Tensor:
        """Float64 ``(N, D)``; files are read in batches.

        Raises:
            ValueError: If there is no image, or a file cannot be read.
        """
        # Where the network resizes by itself, images of a batch may differ in size.
        batches = (
            torch.stack(list(same))
            for batch in read_ahead(self.preprocess, images)
            for _, same in groupby(batch, key=lambda tensor: tensor.shape)
        )
        found = [self.network(batch).flatten(1).double() for batch in batches]
        if not found:
            raise ValueError("there are no images to compare")
        return torch.cat(found)


def _given_features(dimensions: int) -> nn.Module:
    """Stands for the network in torchmetrics, which is then fed with features instead of images."""
    network: Any = nn.Identity()
    network.num_features = dimensions
    return network


def _inception() -> nn.Module:
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        with fetching("the Inception-v3 of FID and KID"):
            return NoTrainInceptionV3(name="inception-v3-compat", features_list=[INCEPTION_FEATURES])
    except ModuleNotFoundError as error:
        raise ValueError(
            "the Inception-v3 of FID and KID needs a package; type: pip install -e '.[set_metrics]'"
        ) from error
