import json
import math
from itertools import product

import numpy as np
import pytest

from src.eval.statistics.bootstrap import bootstrap_mean, bootstrap_statistic
from src.eval.statistics.paired import (
    Wins,
    adjust,
    compare,
    effect_size,
    holm,
    paired_difference,
    paired_statistic,
    sign_flip_p,
    wins,
)

SUBJECTS, PROMPTS, SEEDS = (axis.ravel() for axis in np.mgrid[:6, :10, :4])
RUNS = 200


def crossed(rng, subject=1.0, prompt=1.0, cell=0.3, seed=0.5):
    """Scores of 6 subjects x 10 prompts x 4 seeds with random effects of these sizes; the true mean is 0."""
    values = subject * rng.normal(size=6)[SUBJECTS] + prompt * rng.normal(size=10)[PROMPTS]
    return values + cell * rng.normal(size=(6, 10))[SUBJECTS, PROMPTS] + seed * rng.normal(size=len(SEEDS))


def coverage(groups, runs=RUNS, **effects):
    """Share of runs whose 95% interval holds the truth."""
    scores = [crossed(np.random.default_rng(run), **effects) for run in range(runs)]
    intervals = [bootstrap_mean(values, groups, run, num=400) for run, values in enumerate(scores)]
    return np.mean([interval.low <= 0 <= interval.high for interval in intervals])


def margin(share):
    """Three standard deviations of a share counted in all runs."""
    return 3 * math.sqrt(share * (1 - share) / RUNS)


def harmonic(means):
    return 2 * means["a"] * means["b"] / (means["a"] + means["b"])


@pytest.mark.parametrize(("subject", "prompt"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_crossed_intervals_cover_with_six_subjects_and_ten_prompts(subject, prompt):
    share = coverage([PROMPTS, SUBJECTS], subject=subject, prompt=prompt)
    assert abs(share - 0.95) <= margin(0.95)


def test_intervals_that_ignore_subjects_or_everything_do_not_cover():
    assert coverage([], runs=60) < 0.5
    assert coverage([PROMPTS], runs=60, prompt=0.3) < 0.7


def test_noise_of_single_images_makes_crossed_intervals_too_wide():
    assert coverage([PROMPTS, SUBJECTS], runs=60, subject=0, prompt=0, cell=0) >= 0.98


def test_the_sign_flip_keeps_its_level_and_finds_what_is_there():
    nulls = [crossed(np.random.default_rng(run), subject=0) for run in range(RUNS)]
    assert abs(np.mean([sign_flip_p(null, PROMPTS, 0) <= 0.05 for null in nulls]) - 0.05) <= margin(0.05)
    assert np.mean([sign_flip_p(null + 2, PROMPTS, 0) <= 0.05 for null in nulls]) > 0.95


def test_flips_of_one_factor_mistake_the_other_and_compare_does_not():
    nulls = [crossed(np.random.default_rng(run), prompt=0.3) for run in range(RUNS)]
    assert np.mean([sign_flip_p(null, PROMPTS, 0) <= 0.05 for null in nulls]) > 0.3
    factors = (PROMPTS, SUBJECTS)
    largest = [max(sign_flip_p(null, labels, 0) for labels in factors) for null in nulls]
    assert np.mean(np.array(largest) <= 0.05) <= 0.05 + margin(0.05)
    assert compare(nulls[0], np.zeros(240), factors, 0).p == largest[0]


def test_few_clusters_are_enumerated():
    differences, clusters = np.random.default_rng(0).normal(0.4, size=15), [*range(5)] * 3
    sums = [differences[place::5].sum() for place in range(5)]
    flipped = [abs(np.dot(signs, sums)) for signs in product((1, -1), repeat=5)]
    expected = np.mean([value >= abs(sum(sums)) - 1e-9 for value in flipped])
    assert sign_flip_p(differences, clusters, seed=0) == sign_flip_p(differences, clusters, seed=1) == expected
    assert sign_flip_p([1.0, 1.0, 1.0], "abc", 0) == 2 / 8
    assert sign_flip_p([1.0, 1.0, 1.0], "aaa", 0) == 1
    assert sign_flip_p([0.0, 0.0], "ab", 0) == 1


def test_sampled_flips_agree_with_all_of_them_and_are_never_zero():
    differences = np.random.default_rng(1).normal(0.4, size=13)
    sums = np.array([*product((1, -1), repeat=13)]) @ differences
    exact = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-9)
    assert sign_flip_p(differences, range(13), seed=0) == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000))
    assert sign_flip_p(np.ones(40), range(40), seed=0) == 1 / 10_001
    assert len({sign_flip_p(differences, range(13), seed=seed) for seed in range(4)}) > 1


def test_holm_as_by_hand():
    # Sorted: 0.005 * 4 = 0.02, 0.01 * 3 = 0.03, 0.03 * 2 = 0.06, and 0.04 * 1 may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1, got"):
        holm([0.5, math.nan])


def test_effect_size_and_wins_count_clusters():
    differences, clusters = [3.0, 1.0, 1.0, -1.0, -0.5, -0.5, 4.0], "aabbccd"
    means = [2, 0, -0.5, 4]
    assert effect_size(differences, clusters) == pytest.approx(np.mean(means) / np.std(means, ddof=1))
    assert effect_size(means) == effect_size(differences, clusters)
    assert wins(differences, clusters) == Wins(won=2, lost=1, tied=1, num=4)
    assert math.isnan(effect_size([1.0, 1.0])) and math.isnan(effect_size([1.0]))


def test_paired_is_much_tighter_than_unpaired():
    rng = np.random.default_rng(0)
    baseline = crossed(rng)
    ours = baseline + 0.1 + 0.1 * rng.normal(size=240)
    groups = [PROMPTS, SUBJECTS]
    paired = paired_difference(ours, baseline, groups, 0)
    alone = bootstrap_mean(ours, groups)
    assert paired.mean == pytest.approx(np.mean(ours) - np.mean(baseline))
    assert paired.low > 0 and paired.high - paired.low < 0.1 * (alone.high - alone.low)


def test_a_statistic_of_means_is_not_the_mean_of_a_statistic():
    rng = np.random.default_rng(0)
    columns = {"a": rng.uniform(0.1, 0.5, 240), "b": rng.uniform(0.4, 0.8, 240)}
    interval = bootstrap_statistic(columns, harmonic, [PROMPTS, SUBJECTS])
    assert interval.mean == pytest.approx(harmonic({name: values.mean() for name, values in columns.items()}))
    assert interval.low < interval.mean < interval.high
    assert abs(interval.mean - harmonic(columns).mean()) > 0.005


def test_a_paired_statistic_sees_the_same_draws_in_both_arms():
    rng = np.random.default_rng(0)
    baseline = {name: 10 + crossed(rng) for name in "ab"}
    ours = {name: values + 0.5 for name, values in baseline.items()}
    groups = [PROMPTS, SUBJECTS]
    assert paired_statistic(baseline, baseline, harmonic, groups, 0).as_dict() == {"mean": 0, "low": 0, "high": 0}
    gained, alone = paired_statistic(ours, baseline, harmonic, groups, 0), bootstrap_statistic(ours, harmonic, groups)
    assert 0.4 < gained.low < gained.mean < gained.high < 0.6
    assert alone.high - alone.low > 0.8
    only_a = paired_statistic(ours, baseline, lambda means: means["a"], groups, 0)
    assert str(only_a) == str(paired_difference(ours["a"], baseline["a"], groups, 0))


def test_a_comparison_goes_to_json_with_its_adjusted_p():
    rng = np.random.default_rng(0)
    better, same = 1 + rng.normal(size=240), rng.normal(size=240)
    compared = {name: compare(ours, np.zeros(240), [PROMPTS], 0) for name, ours in (("x", better), ("y", same))}
    assert compared["x"].adjusted_p is None
    adjusted = adjust(compared)
    assert adjusted["x"].adjusted_p == 2 * compared["x"].p == 4 / 2**10
    told = json.loads(json.dumps(adjusted["x"].as_dict(), allow_nan=False))
    assert told["wins"] == {"won": 10, "lost": 0, "tied": 0, "num": 10}
    assert told["interval"]["low"] > 0 and told["effect_size"] > 1
    assert compare([1.0, 1.0], [0.0, 0.0], [], 0).as_dict()["effect_size"] is None


def test_a_factor_with_one_level_does_not_decide():
    rng = np.random.default_rng(0)
    ours, baseline = 1 + rng.normal(size=240), rng.normal(size=240)
    one = ["rex"] * 240
    assert compare(ours, baseline, [one, PROMPTS], 0) == compare(ours, baseline, [PROMPTS], 0)


def test_what_cannot_be_compared_is_said_in_a_sentence():
    with pytest.raises(ValueError, match="got 2 of ours and 1 of the baseline"):
        compare([1.0, 2.0], [1.0], [], 0)
    with pytest.raises(ValueError, match="1 of 2 scores are not numbers, the first at place 1"):
        compare([1.0, math.nan], [1.0, 2.0], [], 0)
    with pytest.raises(ValueError, match="got 1 for 2"):
        sign_flip_p([1.0, 2.0], "a", 0)
    with pytest.raises(ValueError, match="got 0 for 0"):
        wins([], [])
    with pytest.raises(ValueError, match="same columns"):
        paired_statistic({"a": [1.0]}, {"b": [1.0]}, harmonic, [], 0)
    with pytest.raises(ValueError, match="one number per replicate"):
        bootstrap_statistic({"a": [1.0, 2.0]}, lambda means: means["a"].mean())
    with pytest.raises(ValueError, match="columns of one length"):
        bootstrap_statistic({"a": [1.0, 2.0], "b": [1.0]}, harmonic)
