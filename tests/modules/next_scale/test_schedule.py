"""Scale schedules: the published sizes and token counts, prefixes, and which schedule a size gets."""

import logging

import pytest

from src.modules.next_scale.schedule import INFINITY_PREFIXES, ScaleSchedules, infinity_grids

TOKENS = {
    "1.000": (521, 2521, 6425, 10521),
    "1.250": (614, 2814, 6854, 10774),
    "1.333": (665, 2657, 7085, 10973),
    "1.500": (533, 2759, 6941, 10997),
    "1.750": (472, 2628, 7220, 11252),
    "2.000": (451, 2681, 7219, 11269),
    "2.500": (555, 2555, 6805, 10805),
    "3.000": (509, 2588, 7016, 11123),
}


@pytest.fixture(scope="module")
def infinity() -> ScaleSchedules:
    return ScaleSchedules(infinity_grids(), INFINITY_PREFIXES)


@pytest.mark.parametrize("ratio", TOKENS)
def test_every_pixel_budget_has_its_published_number_of_tokens(infinity: ScaleSchedules, ratio: str) -> None:
    counts = tuple(infinity.schedule(ratio, budget).starts[-1] for budget in INFINITY_PREFIXES)
    assert counts == TOKENS[ratio]


def test_wide_images_have_the_transposed_grids(infinity: ScaleSchedules) -> None:
    assert set(infinity.grids) == {
        *TOKENS, "0.800", "0.750", "0.666", "0.571", "0.500", "0.400", "0.333",
    }  # fmt: skip
    tall, wide = (infinity.schedule(ratio, "1M").grids for ratio in ("1.500", "0.666"))
    assert wide == tuple((columns, rows) for rows, columns in tall)


def test_smaller_images_take_a_prefix_and_the_positions_of_the_largest(infinity: ScaleSchedules) -> None:
    small, large = (infinity.schedule("2.000", budget) for budget in ("0.06M", "1M"))
    assert large.grids[: len(small.grids)] == small.grids
    assert small.position_grid == large.position_grid == large.grids[-1] == (90, 45)


@pytest.mark.parametrize(
    ("size", "grid", "said"),
    [
        ((1024, 1024), (64, 64), False),
        ((256, 256), (16, 16), False),
        ((832, 1248), (52, 78), False),
        ((1000, 1000), (64, 64), True),
        ((512, 400), (35, 28), True),
        ((4000, 1000), (111, 37), True),
    ],
)
def test_a_size_gets_the_nearest_schedule_and_hears_of_a_difference(
    infinity: ScaleSchedules, caplog: pytest.LogCaptureFixture, size: tuple[int, int], grid: tuple[int, int], said: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        assert infinity.nearest(*size, cell=16).grids[-1] == grid
    assert bool(caplog.messages) == said


def test_unknown_names_are_said(infinity: ScaleSchedules) -> None:
    with pytest.raises(ValueError, match=r"no scale schedule is called '4M'; choose one of 0\.06M"):
        infinity.schedule("1.000", "4M")
    with pytest.raises(ValueError, match=r"'1\.1'"):
        infinity.schedule("1.1", "1M")


@pytest.mark.parametrize(
    ("grids", "message"), [([[1, 1], [2, 2]], "the longest prefix"), ([[1, 1], [4, 4], [2, 2]], "from coarse to fine")]
)
def test_impossible_schedules_are_said(grids: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScaleSchedules({"1.000": grids}, {"all": 3})
