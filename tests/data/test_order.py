from collections import Counter
from types import SimpleNamespace

import pytest

from src.data.order import StepBatchSampler, batches_of


def indices(sampler: StepBatchSampler) -> list[int]:
    return [draw.index for batch in sampler for draw in batch]


@pytest.mark.parametrize("first_step", [0, 1, 7, 19, 20])
def test_resuming_gives_the_tail(first_step: int) -> None:
    # Ten items in batches of three: epochs end inside batches.
    whole = list(StepBatchSampler(10, 3, 20, seed=5))
    resumed = StepBatchSampler(10, 3, 20, seed=5, first_step=first_step)
    assert list(resumed) == whole[first_step:]
    # Lightning's loop goes on counting from the first step, so the length is that of the whole training.
    assert len(resumed) == 20


def test_iterating_twice_is_the_same() -> None:
    sampler = StepBatchSampler(10, 3, 20)
    assert list(sampler) == list(sampler)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_partition_the_global_batch(world_size: int) -> None:
    single = list(StepBatchSampler(50, 2 * world_size, 9, seed=1))
    ranks = [list(StepBatchSampler(50, 2, 9, seed=1, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, batch in enumerate(single):
        assert [draw for rank in ranks for draw in rank[step]] == batch


def test_positions_tell_every_sample_of_a_step_apart() -> None:
    ranks = [StepBatchSampler(50, 4, 3, rank=rank, world_size=2) for rank in range(2)]
    seen = [(draw.step, draw.position) for sampler in ranks for batch in sampler for draw in batch]
    assert sorted(seen) == [(step, position) for step in range(3) for position in range(8)]


def test_every_epoch_visits_every_item_once_in_a_new_order() -> None:
    drawn = indices(StepBatchSampler(12, 5, 24, seed=3))
    epochs = [drawn[start : start + 12] for start in range(0, len(drawn), 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_batches_larger_than_the_dataset_repeat_evenly() -> None:
    counts = Counter(indices(StepBatchSampler(3, 8, 6)))
    assert set(counts.values()) == {16}


def test_seed_changes_the_order() -> None:
    assert indices(StepBatchSampler(100, 10, 10, seed=0)) != indices(StepBatchSampler(100, 10, 10, seed=1))


def test_nothing_is_left_after_the_last_step() -> None:
    sampler = StepBatchSampler(10, 3, 5, first_step=9)
    assert list(sampler) == []


@pytest.mark.parametrize(("num_items", "batch_size"), [(0, 4), (4, 0)])
def test_nothing_to_draw_from(num_items: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="at least one item and one per batch"):
        StepBatchSampler(num_items, batch_size, 1)


def test_an_accumulating_step_takes_batches_that_no_other_step_takes() -> None:
    trainer = SimpleNamespace(max_steps=6, global_step=2, accumulate_grad_batches=3)
    assert batches_of(trainer) == (18, 6)
    num_batches, first_batch = batches_of(trainer)
    rest = [draw.index for batch in StepBatchSampler(100, 4, num_batches, 0, first_batch) for draw in batch]
    whole = [draw.index for batch in StepBatchSampler(100, 12, 6, 0, 2) for draw in batch]
    assert rest == whole
