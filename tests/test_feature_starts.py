"""Each feature's own best start is what the search says, and trainings from it are compared caption by caption."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.feature_starts.study import TASK
from experiments.four_quadrants.study import FEATURES
from experiments.starts import SEARCH_SEED, TWO, Start, Task
from experiments.study import Study
from src.data.world.quadrants import QuadrantData, paint, read, split

LOSSES = {str(start): 0.1 for features in FEATURES for start in TASK.tried(features, {})}
OWN = {
    "llmdiff, lr 0.01, gain 0.5": 0.03,
    "llmdiff, lr 0.01, gain 0.1": 0.02,
    "llmdiff, lr 0.01, gain 1": 0.04,
    "sum, lr 0.003, gain 0.5": 0.05,
    "sum, lr 0.003, gain 0.1": 0.06,
    "sum, lr 0.003, gain 1": 0.03,
    "last, lr 0.01": 0.04,
}


def test_the_best_start_has_the_lowest_loss_of_its_own_feature() -> None:
    found = TASK.best(LOSSES | OWN)
    assert found["llmdiff"] == Start("llmdiff", 0.01, 0.1)
    assert found["sum"] == Start("sum", 0.003, 1.0)
    assert found["last"] == Start("last", 0.01, None)
    assert set(found) == set(FEATURES)


def test_gains_are_tried_at_the_best_rate_and_only_where_blocks_are_summed() -> None:
    assert TASK.tried("last", LOSSES | OWN) == [Start("last", rate, None) for rate in (0.003, 0.01)]
    rates = [Start("sum", rate, 0.5) for rate in (0.003, 0.01)]
    assert TASK.tried("sum", {}) == rates
    assert TASK.tried("sum", LOSSES | OWN) == [*rates, Start("sum", 0.003, 0.1), Start("sum", 0.003, 1.0)]


def test_the_common_start_is_one_that_is_searched() -> None:
    assert all(TASK.common(features) in TASK.tried(features, LOSSES) for features in FEATURES)


def test_no_reported_seed_chooses() -> None:
    assert SEARCH_SEED not in (*TASK.seeds_of_all, *TASK.seeds_of_two, 0, 1, 2)


def test_a_start_that_is_the_best_and_the_common_one_is_trained_once() -> None:
    own = {features: TASK.common(features) for features in TWO}
    assert TASK.wanted(own) == [TASK.common(features) for features in TWO]
    own["sum"] = Start("sum", 0.01, 0.1)
    assert TASK.wanted(own) == [TASK.common("llmdiff"), own["sum"], TASK.common("sum")]


def test_small_images_are_painted_and_read_alike() -> None:
    captions = split()[1]
    assert read(paint(captions, 4)) == read(paint(captions)) and paint(captions, 4).shape == (60, 3, 4, 4)
    data = QuadrantData(16, num_captions=240, side=4)
    assert data.train.captions == split()[0][:240] and data.train.images.shape == (240, 3, 4, 4)


def _training(*right: int) -> dict[str, list[bool]]:
    """So many of 60 captions are right after each mark, always the first ones."""
    return {str(mark): [at < number for at in range(60)] for mark, number in zip(TASK.marks, right, strict=True)}


def test_shares_and_differences_are_of_the_same_captions(tmp_path: Path) -> None:
    task = replace(TASK, folder=tmp_path)
    own = task.best(LOSSES | OWN, TWO)
    seeds = task.seeds_of_all[:2]
    curves = {"llmdiff": (0, 30, 45, 60, 60), "sum": (0, 0, 15, 30, 30)}
    for seed in seeds:
        found = {str(own[one]): _training(*curves[one]) for one in TWO}
        found |= {str(TASK.common(one)): _training(0, 0, 0, 0, 15) for one in TWO}
        (tmp_path / f"seed_{seed}.json").write_text(json.dumps(found), encoding="utf-8")
    (tmp_path / f"seed_{task.seeds_of_all[2]}.json").write_text("{}", encoding="utf-8")
    record = task.compared(own, LOSSES | OWN)
    (tmp_path / "kept.json").write_text(json.dumps(record), encoding="utf-8")
    study = Study(tmp_path / "kept.json")
    assert record["seeds"] == list(seeds) and study.baseline == "llmdiff"
    assert study.mean("llmdiff", "right").mean == 1.0 and study.mean("sum", "right").mean == 0.5
    assert study.mean("llmdiff, common start", "right").mean == 0.25
    assert study.mean("llmdiff", "on_the_way").mean == pytest.approx((0 + 0.5 + 0.75 + 1 + 1) / 5)
    assert study.difference("sum", "llmdiff", "right").mean == -0.5
    assert study.difference("sum", "llmdiff", f"right_{TASK.marks[1]}").mean == -0.5
    assert study.mean("sum", "rate").mean == 0.003 and study.mean("sum", "gain").mean == 1.0
    assert study.mean("sum", "loss").mean == 0.03


def several(folder: Path) -> Task:
    """A task of two forms, of which the second needs context, and one mark."""
    return replace(TASK, folder=folder, forms=("listed", "placed"), marks=(10,), seeds_of_two=(3, 4, 5))


def test_forms_count_alike_and_each_has_its_own_scores(tmp_path: Path) -> None:
    task = several(tmp_path)
    starts = {one: task.common(one) for one in TWO}
    right = {"llmdiff": 60 * [4] + 30 * [4] + 30 * [2], "sum": 60 * [4] + 60 * [1]}
    for seed in task.seeds_of_two:
        found = {str(starts[one]): {"10": right[one]} for one in TWO}
        (tmp_path / f"seed_{seed}.json").write_text(json.dumps(found), encoding="utf-8")
    (tmp_path / "kept.json").write_text(
        json.dumps(task.compared(starts, {str(start): 0.1 for start in starts.values()})), encoding="utf-8"
    )
    study = Study(tmp_path / "kept.json")
    means = {score: study.mean("llmdiff", score).mean for score in study.scores}
    assert means["right"] == means["on_the_way"] == 0.75 and means["quadrants"] == 0.875
    assert means["right_listed"] == 1.0 and means["right_placed"] == means["right_in_context"] == 0.5
    assert means["quadrants_in_context"] == 0.75
    assert study.difference("sum", "llmdiff", "right_in_context").mean == -0.5
    assert study.difference("sum", "llmdiff", "quadrants").mean == -0.25


def test_starts_that_no_search_chose_are_compared_without_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = several(tmp_path / "results")

    def measure(self: Task, seed: int, starts: dict[str, Start]) -> None:
        assert self.wanted(starts) == [self.common(one) for one in FEATURES]
        found = {str(start): {"10": 120 * [4 if start.features == "last" else 0]} for start in starts.values()}
        self.path(seed).write_text(json.dumps(found), encoding="utf-8")

    monkeypatch.setattr(Task, "measure", measure)
    task.run_from({one: task.common(one) for one in FEATURES}, "common", task.seeds_of_all)
    study = Study(tmp_path / "results" / "common.json")
    assert study.record["seeds"] == list(task.seeds_of_all)
    assert study.difference("last", "llmdiff", "right").mean == 1.0 and "loss" not in study.scores
