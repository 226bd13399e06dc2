"""Pairs of prompts differ in what was asked for, and in nothing else."""

import pytest

from src.data.world.caption_tests import DIFFERENCES, prompt_pairs


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_pairs_differ_in_what_was_asked_for(difference: str) -> None:
    pairs = prompt_pairs(difference, 60, seed=3)
    assert len(set(pairs)) == 60
    for pair in pairs:
        changed = (pair.base_object != pair.injected_object, pair.base_color != pair.injected_color)
        assert changed == DIFFERENCES[difference]
        assert pair.base == f"a photo of a {pair.base_color} {pair.base_object}"


def test_the_seed_decides() -> None:
    assert prompt_pairs("both", 9, seed=1) == prompt_pairs("both", 9, seed=1)
    assert prompt_pairs("both", 9, seed=1) != prompt_pairs("both", 9, seed=2)


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ValueError, match="choose one of object, color, both"):
        prompt_pairs("size", 1)
    with pytest.raises(ValueError, match="there are 1440"):
        prompt_pairs("color", 1441)
