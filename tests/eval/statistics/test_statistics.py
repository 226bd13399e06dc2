import math

import numpy as np
import pytest

from src.eval.statistics.bootstrap import bootstrap_mean, bootstrap_ratio, replicate_weights, student_quantile


def covered(draw, trials=100):
    """Share of 95% intervals that hold the true mean, 0."""
    intervals = [draw(np.random.default_rng(trial)) for trial in range(trials)]
    return np.mean([interval.low <= 0 <= interval.high for interval in intervals])


def clustered(rng, groups):
    prompts = np.repeat(np.arange(25), 4)
    values = rng.normal(size=25)[prompts] + 0.3 * rng.normal(size=100)
    return bootstrap_mean(values, [prompts] if groups else (), num=200)


def crossed(rng, both):
    prompts, subjects = (axis.ravel() for axis in np.mgrid[:25, :20])
    values = rng.normal(size=25)[prompts] + rng.normal(size=20)[subjects] + 0.5 * rng.normal(size=500)
    return bootstrap_mean(values, [prompts, subjects] if both else [prompts], num=200)


def test_independent_values_are_covered():
    assert covered(lambda rng: bootstrap_mean(rng.normal(size=40), num=200)) >= 0.88


def test_clusters_are_covered_and_ignoring_them_is_not():
    assert covered(lambda rng: clustered(rng, True)) >= 0.89
    assert covered(lambda rng: clustered(rng, False)) < 0.8


def test_crossed_factors_are_covered_and_one_factor_is_not_enough():
    assert covered(lambda rng: crossed(rng, True)) >= 0.89
    assert covered(lambda rng: crossed(rng, False)) < 0.85


def test_replicates_of_a_mean_vary_as_much_as_the_mean_does():
    values, clusters = np.array([0.0, 1.0, 3.0, 7.0]), np.repeat(range(4), 5)
    weights = replicate_weights([clusters], 20, np.random.default_rng(0), 20_000)
    means = weights @ values[clusters] / weights.sum(1)
    assert means.var() == pytest.approx(values.var(ddof=1) / 4, rel=0.03)


def test_student_quantiles_are_those_of_the_tables():
    table = {1: 12.706, 2: 4.303, 5: 2.571, 9: 2.262, 24: 2.064, 10_000: 1.960}
    assert {degrees: round(student_quantile(degrees), 3) for degrees in table} == table
    assert student_quantile(6) < student_quantile(5.5) < student_quantile(5)


def test_few_levels_widen_the_interval_of_the_factor_that_matters():
    prompts, subjects = (axis.ravel() for axis in np.mgrid[:40, :6])
    effects = np.array([-1.5, -0.8, -0.1, 0.2, 0.8, 1.4])
    small = 1e-3 * np.random.default_rng(0).normal(size=240)
    width = 2 * effects.std(ddof=1) / math.sqrt(6)
    of_subjects = bootstrap_mean(effects[subjects] + small, [prompts, subjects])
    assert of_subjects.high - of_subjects.low == pytest.approx(2.571 * width, rel=0.1)
    of_prompts = bootstrap_mean(np.sin(prompts) + small, [prompts, subjects])
    width = 2 * np.sin(np.arange(40)).std(ddof=1) / math.sqrt(40)
    assert of_prompts.high - of_prompts.low == pytest.approx(2.023 * width, rel=0.1)


def test_factors_that_matter_alike_share_their_degrees_of_freedom():
    """Satterthwaite: ``(V_1 + V_2)^2 / (V_1^2 / d_1 + V_2^2 / d_2)``, each V the squared standard error of a factor."""
    prompts, subjects = (axis.ravel() for axis in np.mgrid[:9, :4])
    of_prompts, of_subjects = np.sin(np.arange(9)), np.array([-0.6, 0.1, 0.2, 0.9])
    variances = [of_prompts.var(ddof=1) / 9, of_subjects.var(ddof=1) / 4]
    degrees = sum(variances) ** 2 / (variances[0] ** 2 / 8 + variances[1] ** 2 / 3)
    interval = bootstrap_mean(of_prompts[prompts] + of_subjects[subjects], [prompts, subjects], num=20_000)
    # A percentile interval is taken further out until a normal one would be as wide as Student's.
    width = 2 * student_quantile(degrees) * math.sqrt(sum(variances))
    assert 3 < degrees < 11 and interval.high - interval.low == pytest.approx(width, rel=0.05)


def test_values_that_do_not_vary_have_no_width():
    interval = bootstrap_mean([0.5] * 4, ["aabb", "abab"])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)
    assert bootstrap_mean([0.5]).low == 0.5


def test_mean_is_exact_and_the_seed_decides():
    values = np.arange(12.0) ** 2
    first, again, other = (bootstrap_mean(values, seed=seed) for seed in (0, 0, 1))
    assert first.mean == pytest.approx(506 / 12)
    assert first == again != other
    assert first.low < first.mean < first.high


def test_a_factor_with_one_level_is_left_out():
    values = np.random.default_rng(0).normal(size=20)
    assert bootstrap_mean(values, [["dog"] * 20]) == bootstrap_mean(values)
    assert bootstrap_mean(values, [list(range(20)), ["rex"] * 20]) == bootstrap_mean(values)


def test_ratio_is_of_sums_and_paired():
    above, below = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    interval = bootstrap_ratio(above, below)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_share_of_nothing_is_undefined():
    interval = bootstrap_ratio([0.1, 0.2], [0.0, -0.1])
    assert math.isnan(interval.mean)
    assert str(interval) == "undefined"
    assert interval.as_dict() == {"mean": None, "low": None, "high": None}


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="3 values, 2 labels"):
        bootstrap_mean([1.0, 2.0, 3.0], [["a", "b"]])
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean([])
