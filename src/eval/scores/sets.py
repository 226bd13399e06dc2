"""FID, KID and LPIPS: numbers of a whole set of images, those that are asked for by name."""

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import combinations, groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from src.data.images import Picture, find_images, load_image
from src.data.ranges import Count, Seed
from src.eval.encoders.models import fetching, read_ahead

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
        seed: Draws the subsets.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        preprocess: Callable[[Image.Image], Tensor] = to_uint8,
        subset_size: Count = 100,
        num_subsets: Count = 100,
        seed: Seed = 0,
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
            'the Inception-v3 of FID and KID needs a package; type: pip install -e ".[set_metrics]"'
        ) from error


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


AGAINST_REAL = ("fid", "kid")
NAMES = (*AGAINST_REAL, "lpips")


class SetScores:
    """FID and KID against a folder of real images, LPIPS between the samples of one prompt.

    Args:
        names: Some of ``fid``, ``kid`` and ``lpips``; none of them loads no network.
        real_dir: The images that ``fid`` and ``kid`` compare with.
        measures: Network and subsets of FID and KID.
        perceptual: Network of LPIPS.

    Raises:
        ValueError: If a name is unknown, or FID or KID have nothing to compare with.
    """

    def __init__(
        self, names: Sequence[str], real_dir: str | None, measures: SetMetrics, perceptual: PerceptualDiversity
    ) -> None:
        unknown = [name for name in names if name not in NAMES]
        if unknown:
            raise ValueError(f"there is no set metric {unknown[0]!r}; choose some of: {', '.join(NAMES)}")
        compared = [name for name in names if name in AGAINST_REAL]
        if compared and real_dir is None:
            raise ValueError(f"{compared[0]} compares with real images; set real_dir=FOLDER beside its name")
        self.names, self.measures, self.perceptual = list(names), measures, perceptual
        self.real = find_images(real_dir) if compared and real_dir else []

    def check(self, num_images: int, num_seeds: int) -> None:
        """Load the networks and count, before anything is drawn.

        Args:
            num_images: How many images the set has.
            num_seeds: Samples of one prompt among them.

        Raises:
            ValueError: If weights are missing, or images are too few.
        """
        if self.real:
            _ = self.measures.network
        if "kid" in self.names:
            self.measures.check_subsets(num_images, len(self.real))
        if "lpips" in self.names:
            _ = self.perceptual.network
            if num_seeds < 2:
                raise ValueError("lpips compares samples of one prompt, and there is one; set num_seeds=2 or more")

    def __call__(self, samples: Sequence[Sequence[Path]]) -> dict[str, float]:
        """Measure.

        Args:
            samples: Files of all images, those of one prompt together.

        Returns:
            By name; for KID also ``kid_std``, over its subsets.
        """
        files = [path for one in samples for path in one]
        found: dict[str, float] = {}
        if "fid" in self.names:
            found["fid"] = self.measures.fid(files, self.real)
        if "kid" in self.names:
            found["kid"], found["kid_std"] = self.measures.kid(files, self.real)
        if "lpips" in self.names:
            found["lpips"] = fmean(self.perceptual([load_image(path) for path in one]) for one in samples)
        return found
