"""Numbers of a whole set of images, those that are asked for by name."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from src.data.images import find_images, load_image
from src.eval.perceptual_diversity import PerceptualDiversity
from src.eval.set_metrics import SetMetrics

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
            num_images: Of the set.
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
