from statistics import NormalDist, harmonic_mean

import numpy as np
import pytest
import torch

from src.eval.scores.harmonics import (
    harmonic,
    harmonic_of_means,
    harmonics_per_image,
    min_max_harmonic,
    z_scored_harmonic,
)

PUBLISHED = [
    # Table 1 of arXiv 2507.04482: S_txt, S_img, S_harm.
    (0.334, 0.630, 0.437),
    (0.302, 0.763, 0.433),
    (0.315, 0.716, 0.438),
    (0.273, 0.657, 0.386),
    (0.304, 0.599, 0.403),
    (0.323, 0.602, 0.420),
    (0.324, 0.559, 0.410),
    (0.318, 0.623, 0.421),
    (0.314, 0.701, 0.434),
    # Table 2.
    (0.348, 0.559, 0.429),
    (0.279, 0.696, 0.398),
    (0.321, 0.631, 0.426),
    (0.334, 0.630, 0.437),
    # Table 3.
    (0.323, 0.640, 0.429),
    (0.331, 0.631, 0.434),
    (0.334, 0.630, 0.437),
    (0.334, 0.624, 0.435),
    (0.335, 0.621, 0.435),
]


@pytest.fixture
def scores():
    draw = torch.Generator().manual_seed(0)
    return [0.1 + 0.8 * torch.rand(50, generator=draw, dtype=torch.float64) for _ in range(2)]


def test_each_element_and_nothing_where_one_is_not_positive():
    first, second = torch.tensor([0.334, 0.5, 0.0, -0.1]), torch.tensor([0.630, 0.5, 0.7, 0.7])
    np.testing.assert_allclose(harmonic(first, second), [2 * 0.334 * 0.630 / 0.964, 0.5, 0.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize(("text", "image", "published"), PUBLISHED)
def test_published_rows_are_harmonics_of_means(text, image, published):
    means = {"s_txt": np.array([text, -text]), "s_img": np.array([image, image])}
    assert np.round(harmonic_of_means(means), 3).tolist() == [published, 0]


def test_the_order_of_the_means_matters(scores):
    text, image = (score.numpy() for score in scores)
    of_means = harmonic_of_means({"s_txt": text.mean(keepdims=True), "s_img": image.mean(keepdims=True)})
    np.testing.assert_allclose(of_means, harmonic_mean([text.mean(), image.mean()]))
    per_image = harmonics_per_image(text, image)
    np.testing.assert_allclose(per_image, [harmonic_mean(pair) for pair in zip(text, image, strict=True)])
    assert per_image.mean() < of_means
    with pytest.raises(ValueError, match="needs both scores, got 50 and 49"):
        harmonics_per_image(text, image[1:])


def test_spread_over_the_arms(scores):
    text, image = (score.numpy() for score in scores)
    spread = [((x - x.min()) / (x.max() - x.min())).tolist() for x in (text, image)]
    expected = [harmonic_mean(pair) for pair in zip(*spread, strict=True)]
    np.testing.assert_allclose(min_max_harmonic(*scores), expected)
    quantiles = [[NormalDist(x.mean(), x.std()).cdf(value) for value in x] for x in (text, image)]
    expected = [harmonic_mean(pair) for pair in zip(*quantiles, strict=True)]
    np.testing.assert_allclose(z_scored_harmonic(*scores), expected)


def test_one_range_makes_both_scores_count_alike():
    text, image = torch.tensor([0.30, 0.32, 0.34]), torch.tensor([0.7, 0.6, 0.5])
    for spread in (min_max_harmonic, z_scored_harmonic):
        assert torch.allclose(spread(text, image), spread(image, text))
        assert spread(text, image).argmax() == 1
    assert harmonic(text, image).argmax() != 1


def test_equal_arms_cannot_be_spread(scores):
    for spread in (min_max_harmonic, z_scored_harmonic):
        with pytest.raises(ValueError, match="these 3 do not differ"):
            spread(torch.full((3,), 0.3), scores[0][:3])
