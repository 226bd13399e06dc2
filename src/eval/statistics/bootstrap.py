"""Means with 95% bootstrap intervals that respect how the images were made: clustered, crossed, paired."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np

NUM_REPLICATES = 2000
LEVEL = 0.95

Values = Sequence[float] | np.ndarray

Labels = Sequence[Hashable] | np.ndarray

Groups = Sequence[Labels]
"""One labelling of the values per factor, e.g. the prompt of each image and the subject of each image."""

Statistic = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""From the means of the columns, each ``(num,)``, to one number per replicate, ``(num,)``."""


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


def bootstrap_mean(values: Values, groups: Groups = (), seed: int = 0, num: int = NUM_REPLICATES) -> Interval:
    """The mean of the values and its interval; arguments and errors as of ``bootstrap_statistic``."""
    return bootstrap_statistic({"value": values}, lambda means: means["value"], groups, seed, num)


def bootstrap_ratio(
    numerator: Values, denominator: Values, groups: Groups = (), seed: int = 0, num: int = NUM_REPLICATES
) -> Interval:
    """The ratio of two means over the same, paired items; a ratio of sums, never a mean of ratios.

    Not a number where the denominator is not positive: a share of nothing is undefined.
    """
    columns = {"above": numerator, "below": denominator}
    return bootstrap_statistic(columns, _positive_ratio, groups, seed, num)


def bootstrap_statistic(
    columns: Mapping[str, Values],
    statistic: Statistic,
    groups: Groups = (),
    seed: int = 0,
    num: int = NUM_REPLICATES,
) -> Interval:
    """A function of the means of columns, e.g. the harmonic mean of two scores, computed anew in each replicate.

    Replicates reweight the levels of each factor, and a value counts as the product of its weights (pigeonhole
    bootstrap, Owen 2007, doi 10.1214/07-AOAS122). Quantiles of replicates alone are too narrow for few levels; they
    are taken further out, as a t interval is wider than a normal one (expanded percentile interval, Hesterberg 2015,
    arXiv 1411.5279). Noise that belongs to no factor counts about three times: where it dominates, intervals are too
    wide. Below about five levels of a factor that matters they are still too narrow.

    Args:
        columns: Name to values, each of shape ``(n,)``, all about the same items.
        statistic: A function of the means of the columns, elementwise. A replicate where it is not finite is left out.
        groups: Factors whose levels are resampled, each of length ``n``. None: the values are independent. One: whole
            clusters are drawn. Two: both are drawn and crossed. A factor with one level is left out, for it says
            nothing about others.
        seed: Seeds the draws.
        num: Replicates.

    Returns:
        The statistic of the plain means and its interval; not a number where that statistic is not finite.

    Raises:
        ValueError: If there is no value, a column or a factor has another length, or the statistic another shape.
    """
    values = _stacked(columns)
    factors = _factors(groups, len(values))

    def measure(weights: np.ndarray) -> np.ndarray:
        # A replicate can be empty when factors are not fully crossed: 0 / 0 is left out below.
        with np.errstate(divide="ignore", invalid="ignore"):
            means = weights @ values / weights.sum(1, keepdims=True)
            result = np.asarray(statistic(dict(zip(columns, means.T, strict=True))))
        if result.shape != (len(weights),):
            raise ValueError(f"a statistic gives one number per replicate, {len(weights)}, not shape {result.shape}")
        return result

    point = float(measure(np.ones((1, len(values))))[0])
    if not math.isfinite(point):
        return Interval(math.nan, math.nan, math.nan)
    replicates = measure(replicate_weights(groups, len(values), np.random.default_rng(seed), num))
    tail = NormalDist().cdf(-student_quantile(_degrees_of_freedom(factors, measure)))
    low, high = np.quantile(replicates[np.isfinite(replicates)], [tail, 1 - tail])
    return Interval(point, float(low), float(high))


def replicate_weights(groups: Groups, n: int, rng: np.random.Generator, num: int) -> np.ndarray:
    """How much each value counts in each replicate, ``(num, n)``; only ratios within a replicate mean something.

    Of ``L`` levels, ``L - 1`` are drawn with replacement: then the variance over replicates of a mean over levels is
    ``s^2 / L`` without bias, where ``L`` draws give ``(L - 1) / L`` of it (Rao and Wu 1988, JASA 83, 231-241).
    """
    weights = np.ones((num, n))
    for levels in _factors(groups, n):
        number = int(levels.max()) + 1
        counts = rng.multinomial(max(number - 1, 1), np.full(number, 1 / number), size=num)
        weights *= counts[:, levels]
    return weights


def student_quantile(degrees: float) -> float:
    """What bounds the central 95% of Student's t distribution, for one degree of freedom or more, not only whole ones.

    With ``t = sqrt(degrees) * tan(angle)`` the density becomes ``cos(angle) ** (degrees - 1)``, easily summed.
    """
    edges = np.linspace(0, math.pi / 2, 20_001)
    mass = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (degrees - 1))
    return math.sqrt(degrees) * math.tan(np.interp(LEVEL, mass / mass[-1], edges[1:]))


def _degrees_of_freedom(factors: Sequence[np.ndarray], measure: Callable[[np.ndarray], np.ndarray]) -> float:
    """Of the variance of a statistic to which several factors contribute (Satterthwaite 1946, Biometrics 2, 110-114).

    The part of each factor is its jackknife variance, from leaving out one level at a time.
    """
    degrees = [max(int(levels.max()), 1) for levels in factors]
    if len(factors) == 1:
        return degrees[0]
    parts = []
    for levels in factors:
        left_out = measure((levels != np.arange(levels.max() + 1)[:, None]).astype(np.float64))
        parts.append(left_out.var() * (len(left_out) - 1))
    total = sum(parts)
    # Nothing varies, or one level holds all that the statistic needs: the cautious choice.
    if not (math.isfinite(total) and total > 0):
        return min(degrees)
    return total**2 / sum(part**2 / degree for part, degree in zip(parts, degrees, strict=True))


def _factors(groups: Groups, n: int) -> list[np.ndarray]:
    """The level of each value as a whole number, per factor that has several; of no such factor, each value is one."""
    for labels in groups:
        if len(labels) != n:
            raise ValueError(f"a factor needs one label per value: {n} values, {len(labels)} labels")
    factors = []
    for labels in [labels for labels in groups if len(set(labels)) > 1] or [range(n)]:
        levels = {label: index for index, label in enumerate(dict.fromkeys(labels))}
        factors.append(np.array([levels[label] for label in labels]))
    return factors


def _stacked(columns: Mapping[str, Values]) -> np.ndarray:
    """Shape ``(n, number of columns)``."""
    lengths = {name: len(values) for name, values in columns.items()}
    if not lengths or len(set(lengths.values())) > 1 or not min(lengths.values()):
        raise ValueError(f"need columns of one length and at least one value in each, got {lengths}")
    return np.stack([np.asarray(values, dtype=np.float64) for values in columns.values()], axis=1)


def _positive_ratio(means: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.where(means["below"] > 0, means["above"] / means["below"], np.nan)
