"""The three deviations of denoising, each worked out by hand."""

import numpy as np
import pytest
import torch

from src.eval.scores.deviation import stepwise_deviation, structure_deviation, trajectory_deviation


def test_a_step_deviates_by_the_square_of_the_relative_distance() -> None:
    # Two steps of two images of four numbers: norms^2 of the plain model 4 and 16, and 1 and 100.
    plain = torch.zeros(2, 2, 1, 2, 2)
    plain[0, 0], plain[1, 0] = 1.0, 2.0
    plain[0, 1, 0, 0, 0], plain[1, 1, 0, 1, 1] = 1.0, 10.0
    noise = plain.clone()
    noise[0, 0, 0, 0, 0] += 2.0  # 4 / 4
    noise[1, 0, 0, 1, 1] -= 4.0  # 16 / 16
    noise[1, 1, 0, 0, 0] += 5.0  # 25 / 100, and 0 / 1 in the first step
    assert stepwise_deviation(noise, plain).tolist() == pytest.approx([1.0, 0.125])


def test_a_trajectory_deviates_by_the_relative_distance_after_each_step() -> None:
    # Pure noise, then two steps: norms of the plain model 2 and 4.
    plain = torch.zeros(3, 1, 1, 2, 2)
    plain[0], plain[1], plain[2] = 7.0, 1.0, 2.0
    latents = plain.clone()
    latents[1, 0, 0, 0, 1] += 1.0  # 1 / 2
    latents[2, 0, 0] += torch.tensor([[0.0, 3.0], [4.0, 0.0]])  # 5 / 4
    assert trajectory_deviation(latents, plain).tolist() == pytest.approx([(0.5 + 1.25) / 2])
    latents[0] = 100.0
    assert trajectory_deviation(latents, plain).tolist() == pytest.approx([(0.5 + 1.25) / 2])


def test_structure_is_what_cells_have_in_common_whatever_they_are() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in rng.normal(size=(2, 3, 4, 5)))
    expected = []
    for one, other in zip(ours, theirs, strict=True):
        squares = [(one[p] @ one[q] - other[p] @ other[q]) ** 2 for p in range(4) for q in range(4)]
        expected.append((sum(squares) / 16) ** 0.5)
    assert structure_deviation(torch.tensor(ours), torch.tensor(theirs)).tolist() == pytest.approx(expected)
    # Everything turned alike is another look with the same structure.
    turned = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert structure_deviation(torch.tensor(ours @ turned), torch.tensor(ours)).max() < 1e-9


def test_cells_that_are_all_alike_and_all_unlike_are_as_far_apart_as_that() -> None:
    # 1 everywhere against 1 on the diagonal alone: 12 of 16 differ by 1.
    alike, unlike = torch.eye(4)[:1].expand(4, 4)[None], torch.eye(4)[None]
    assert structure_deviation(alike, unlike).tolist() == pytest.approx([0.75**0.5])


def test_nothing_deviates_from_itself() -> None:
    path, cells = torch.randn(3, 2, 1, 2, 2), torch.nn.functional.normalize(torch.randn(2, 4, 5), dim=-1)
    for deviation, of in ((stepwise_deviation, path), (trajectory_deviation, path), (structure_deviation, cells)):
        assert deviation(of, of).tolist() == [0.0, 0.0]
