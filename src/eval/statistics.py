"""Means with 95% bootstrap intervals that respect how the images were made: clustered, crossed, paired."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

NUM_REPLICATES = 2000
LEVEL = 0.95

Groups = Sequence[Sequence[Hashable]]
"""One labelling of the values per factor, e.g. the prompt of each image and the subject of each image."""


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """As tables show it."""
        if not math.isfinite(self.mean):
            return "undefined"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which knows no NaN."""
        return {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, groups: Groups = (), seed: int = 0, num: int = NUM_REPLICATES
) -> Interval:
    """The mean of the values and its percentile interval.

    Args:
        values: Shape ``(n,)``.
        groups: Factors whose levels are resampled, each of length ``n``. None: the values are independent. One: whole
            clusters are drawn. Two: both are drawn and crossed, a value counts as the product of its two draws. A
            factor with one level is left out, for it says nothing about others.
        seed: Of the draws.
        num: Replicates.

    Raises:
        ValueError: If there is no value or a factor has another length.
    """
    return bootstrap_ratio(values, np.ones(len(values)), groups, seed, num)


def bootstrap_ratio(
    numerator: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    groups: Groups = (),
    seed: int = 0,
    num: int = NUM_REPLICATES,
) -> Interval:
    """The ratio of two means over the same, paired items; a ratio of sums, never a mean of ratios.

    Not a number where the denominator is not positive: a share of nothing is undefined.
    """
    above, below = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if len(above) == 0 or len(above) != len(below):
        raise ValueError(f"need as many numerators as denominators and at least one, got {len(above)} and {len(below)}")
    if below.sum() <= 0:
        return Interval(math.nan, math.nan, math.nan)
    weights = _weights(groups, len(above), np.random.default_rng(seed), num)
    totals = weights @ below
    # A replicate can be empty when factors are not fully crossed; it says nothing.
    replicates = (weights @ above)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(above.sum() / below.sum()), float(low), float(high))


def _weights(groups: Groups, n: int, rng: np.random.Generator, num: int) -> np.ndarray:
    """How often each value counts in each replicate, ``(num, n)``."""
    for labels in groups:
        if len(labels) != n:
            raise ValueError(f"a factor needs one label per value: {n} values, {len(labels)} labels")
    weights = np.ones((num, n))
    for labels in [labels for labels in groups if len(set(labels)) > 1] or [range(n)]:
        levels = {label: index for index, label in enumerate(dict.fromkeys(labels))}
        counts = rng.multinomial(len(levels), np.full(len(levels), 1 / len(levels)), size=num)
        weights *= counts[:, [levels[label] for label in labels]]
    return weights
