"""Two arms scored on the same places (prompt x subject x seed): difference, test, effect size, wins."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from src.eval.statistics.bootstrap import (
    Groups,
    Interval,
    Labels,
    Statistic,
    Values,
    bootstrap_mean,
    bootstrap_statistic,
)

NUM_FLIPS = 10_000
MAX_EXACT_CLUSTERS = 12

# Scores are float32 and about 1 in size: what is below this is rounding.
TIE = 1e-7


class Wins(NamedTuple):
    """In how many clusters our mean is above, below and equal to the baseline's, e.g. subjects won out of six."""

    won: int
    lost: int
    tied: int
    num: int


@dataclass(frozen=True)
class Comparison:
    """One arm against its baseline; a positive difference is in favour of the arm.

    ``adjusted_p`` is None until ``adjust`` has seen all comparisons of the table.
    """

    interval: Interval
    p: float
    effect_size: float
    wins: Wins
    adjusted_p: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which knows no NaN."""
        finite = self.effect_size if math.isfinite(self.effect_size) else None
        nested = {"interval": self.interval.as_dict(), "wins": self.wins._asdict()}
        return {**asdict(self), **nested, "effect_size": finite}


def compare(ours: Values, baseline: Values, groups: Groups, seed: int) -> Comparison:
    """Everything about two arms.

    ``groups`` says what is taken as random: with prompts alone, results speak of other prompts for these subjects; with
    prompts and subjects, of other subjects too. The p-value is the largest over the factors, for the test of one factor
    takes the others as they are, and finds far too much where those vary. Effect size and wins are of the first factor.

    Args:
        ours: Shape ``(n,)``.
        baseline: Shape ``(n,)``, in the same order of places.
        groups: As of ``bootstrap_statistic``; without a factor of several levels each place stands for itself.
        seed: Seeds replicates and flips.

    Raises:
        ValueError: If lengths differ or a score is not a number.
    """
    differences = _differences(ours, baseline)
    interval = bootstrap_mean(differences, groups, seed)
    factors = [labels for labels in groups if len(set(labels)) > 1] or [range(len(differences))]
    return Comparison(
        interval=interval,
        p=max(sign_flip_p(differences, labels, seed) for labels in factors),
        effect_size=effect_size(differences, factors[0]),
        wins=wins(differences, factors[0]),
    )


def adjust(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """The same comparisons with p-values that allow for their number, see ``holm``."""
    adjusted = holm([comparison.p for comparison in comparisons.values()])
    pairs = zip(comparisons.items(), adjusted, strict=True)
    return {name: replace(comparison, adjusted_p=p) for (name, comparison), p in pairs}


def paired_difference(ours: Values, baseline: Values, groups: Groups, seed: int) -> Interval:
    """Mean of ours minus baseline; what both share, e.g. a hard prompt, cancels. Errors as of ``compare``."""
    return bootstrap_mean(_differences(ours, baseline), groups, seed)


def paired_statistic(
    ours: Mapping[str, Values], baseline: Mapping[str, Values], statistic: Statistic, groups: Groups, seed: int
) -> Interval:
    """A statistic of our means minus the same of the baseline's, e.g. of the harmonic mean of two scores.

    Both arms see the same draws in each replicate. Arguments as of ``bootstrap_statistic``.

    Raises:
        ValueError: If the arms differ in columns or lengths, or a score is not a number.
    """
    if set(ours) != set(baseline):
        raise ValueError(f"arms need the same columns, got {sorted(ours)} and {sorted(baseline)}")
    for name in ours:
        _differences(ours[name], baseline[name])

    def difference(means: Mapping[str, np.ndarray]) -> np.ndarray:
        theirs = statistic({name: means[f"baseline.{name}"] for name in ours})
        return statistic({name: means[f"ours.{name}"] for name in ours}) - theirs

    columns = {f"{arm}.{name}": of[name] for arm, of in (("ours", ours), ("baseline", baseline)) for name in ours}
    return bootstrap_statistic(columns, difference, groups, seed)


def sign_flip_p(differences: Values, clusters: Labels, seed: int, num: int = NUM_FLIPS) -> float:
    """Two-sided p-value of a mean difference of zero, by exchanging the arms of whole clusters.

    Valid if arms can be exchanged within each cluster independently of the others: a cluster has to hold all places
    that go together, and what clusters share, as prompts share subjects, is taken as it is. Up to 12 clusters all
    ``2 ** k`` flips are counted, so p is never below ``2 ** (1 - k)``; above that flips are sampled and the observed
    one is added, so p is never 0 (Phipson and Smyth 2010, doi 10.2202/1544-6115.1585).

    Args:
        differences: Shape ``(n,)``.
        clusters: A label per difference, e.g. its prompt, or its prompt and subject.
        seed: Seeds the flips, where they are sampled.
        num: How many flips are sampled.

    Raises:
        ValueError: If there is no difference, one is not a number, or there is not one label for each.
    """
    _, sums = _clusters(differences, clusters)
    exact = len(sums) <= MAX_EXACT_CLUSTERS
    if exact:
        signs = 1 - 2 * np.indices((2,) * len(sums)).reshape(len(sums), -1).T
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(num, len(sums)))
    # Equal sums may differ by rounding, for they are added in another order.
    extreme = int((np.abs(signs @ sums) >= abs(sums.sum()) - TIE * np.abs(sums).sum()).sum())
    return extreme / len(signs) if exact else (extreme + 1) / (num + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given, that bound the chance of any false finding (Holm 1979).

    Raises:
        ValueError: If a value is outside 0 to 1.
    """
    wrong = [p for p in p_values if not 0 <= p <= 1]
    if wrong:
        raise ValueError(f"p-values lie between 0 and 1, got {wrong}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def effect_size(differences: Values, clusters: Labels | None = None) -> float:
    """Cohen's d_z: mean over standard deviation of the cluster means; without clusters, each difference is one.

    Not a number where there is one cluster or all means are equal. Errors as of ``sign_flip_p``.
    """
    means, _ = _clusters(differences, range(len(differences)) if clusters is None else clusters)
    spread = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    return float(means.mean()) / spread if spread > TIE else math.nan


def wins(differences: Values, clusters: Labels) -> Wins:
    """Count clusters by the sign of their mean difference. Errors as of ``sign_flip_p``."""
    means, _ = _clusters(differences, clusters)
    won, lost = int((means > TIE).sum()), int((means < -TIE).sum())
    return Wins(won, lost, len(means) - won - lost, len(means))


def _clusters(differences: Values, clusters: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sum of the differences in each cluster, in order of appearance."""
    values = _finite(differences)
    if len(values) != len(clusters) or not len(values):
        raise ValueError(f"need a cluster label for each difference, got {len(clusters)} for {len(values)}")
    index = {label: position for position, label in enumerate(dict.fromkeys(clusters))}
    members = np.array([index[label] for label in clusters])
    sums = np.bincount(members, weights=values)
    return sums / np.bincount(members), sums


def _differences(ours: Values, baseline: Values) -> np.ndarray:
    if len(ours) != len(baseline):
        raise ValueError(
            f"arms are compared place by place, got {len(ours)} of ours and {len(baseline)} of the baseline"
        )
    return _finite(ours) - _finite(baseline)


def _finite(values: Values) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    missing = np.flatnonzero(~np.isfinite(array))
    if len(missing):
        raise ValueError(f"{len(missing)} of {len(array)} scores are not numbers, the first at place {missing[0]}")
    return array
