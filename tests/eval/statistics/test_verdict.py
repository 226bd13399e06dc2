"""The word follows from the interval and from the sign that was asked for, and from nothing else."""

import math

import pytest

from src.eval.statistics.bootstrap import Interval
from src.eval.statistics.verdict import verdict


@pytest.mark.parametrize(
    ("low", "high", "asked", "word"),
    [
        (0.1, 0.3, 0.02, "shown"),
        (-0.3, -0.1, -0.02, "shown"),
        (0.1, 0.3, -0.02, "opposite"),
        (-0.3, -0.1, 0.02, "opposite"),
        (-0.1, 0.3, 0.02, "undecided"),
        (0.0, 0.3, 0.02, "undecided"),
        (-0.3, 0.0, -0.02, "undecided"),
        (0.1, 0.3, 0.0, "none"),
    ],
)
def test_an_interval_that_holds_zero_decides_nothing(low: float, high: float, asked: float, word: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high), asked) == word


def test_a_threshold_has_to_be_left_out_by_the_whole_interval() -> None:
    share = Interval(0.86, 0.84, 0.88)
    assert [verdict(share, 1, limit) for limit in (0.8, 0.85, 0.9)] == ["shown", "undecided", "opposite"]
    assert [verdict(share, -1, limit) for limit in (0.8, 0.85, 0.9)] == ["opposite", "undecided", "shown"]


def test_what_is_undefined_is_undecided() -> None:
    assert verdict(Interval(math.nan, math.nan, math.nan), 1) == "undecided"
