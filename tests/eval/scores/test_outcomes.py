import itertools

import pytest
import torch

from src.eval.scores.outcomes import OUTCOMES, as_scores, found_by_look, halfway, outcomes


def one(found, blended=None):
    """The outcome of a single image, whose matrix has a line per region and a column per subject."""
    blends = None if blended is None else torch.tensor([blended], dtype=torch.bool)
    (name,) = [
        name for name, shown in outcomes(torch.tensor([found], dtype=torch.bool), blends).items() if shown.item()
    ]
    return name


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        ([[1, 0], [0, 1]], "as_asked"),
        ([[0, 1], [1, 0]], "swapped"),
        ([[1, 0], [1, 0]], "mixed"),  # the first subject twice
        ([[1, 1], [0, 0]], "mixed"),  # both in one region
        ([[1, 1], [0, 1]], "mixed"),
        ([[1, 0], [0, 0]], "omitted"),
        ([[0, 1], [0, 0]], "omitted"),
        ([[0, 0], [0, 0]], "omitted"),
        ([[1, 0, 0], [0, 0, 1], [0, 1, 0]], "swapped"),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], "as_asked"),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 0]], "omitted"),
        ([[1, 0, 0], [0, 1, 0], [0, 1, 0]], "mixed"),
        ([[1]], "as_asked"),
        ([[0]], "omitted"),
    ],
)
def test_outcomes_are_those_of_the_definition(found, outcome):
    assert one(found) == outcome


def test_a_blend_is_a_mixture_even_where_a_subject_is_missing():
    assert one([[1, 0], [0, 0]], [False, True]) == "mixed"
    assert one([[1, 0], [0, 0]], [False, False]) == "omitted"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_image_has_exactly_one_outcome(number):
    cells = list(itertools.product((False, True), repeat=number * number))
    every = torch.tensor(cells).reshape(-1, number, number)
    found = as_scores(outcomes(every))
    assert tuple(found) == OUTCOMES
    assert torch.equal(torch.stack(list(found.values())).sum(0), torch.ones(len(every), dtype=torch.float64))
    # Of all permutations one is as asked.
    assert found["as_asked"].sum() == 1
    assert found["swapped"].sum() == len(list(itertools.permutations(range(number)))) - 1


def test_outcomes_need_a_region_for_each_subject():
    with pytest.raises(ValueError, match="each subject with its region"):
        outcomes(torch.zeros(4, 2, 3, dtype=torch.bool))


def test_a_subject_is_found_where_more_than_half_of_its_gap_is_closed():
    # Control 0.2 and references 0.8 of the first, 0.0 and 0.4 of the second: limits of 0.5 and 0.2.
    likeness = torch.tensor([[[0.51, 0.19], [0.49, 0.21]]])
    control, ceiling = torch.tensor([0.2, 0.0]), torch.tensor([0.8, 0.4])
    assert halfway(likeness, control, ceiling).tolist() == [[[True, False], [False, True]]]


def test_a_subject_like_its_plain_noun_is_found_nowhere():
    assert not halfway(torch.ones(1, 1, 1), torch.tensor([0.9]), torch.tensor([0.7])).any()


def test_looks_are_compared_in_what_tells_subjects_apart():
    # Three of four attributes tell the two apart; two of three are more than half.
    telling = torch.tensor([True, True, False, True])
    first, second = [1, 1, 1, 0], [0, 0, 1, 1]
    region_of_first = [first, second]
    blend = [[1, 0, 1, 0], [0, 1, 1, 0]]
    nobody = [[1, 0, 1, 0], [0, 0, 1, 0]]
    right = torch.tensor([[region_of_first, blend, nobody]], dtype=torch.bool)
    found, blended = found_by_look(right, telling)
    assert found.tolist() == [[[True, False], [False, False], [False, False]]]
    assert blended.tolist() == [[False, True, False]]
    # What both share does not count, even where it is wrong.
    assert found_by_look(torch.tensor([[[[1, 1, 0, 0]]]], dtype=torch.bool), telling)[0].all()


def test_half_of_the_attributes_are_not_enough():
    right = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.bool)
    found, blended = found_by_look(right, torch.tensor([True, True]))
    assert not found.any()
    assert blended.all()
