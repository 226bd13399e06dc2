"""Principal feature blending against its definition, its limits and its symmetries."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from src.modules.style_svd.blending import (
    blended_features,
    decay_weights,
    joined,
    principal_features,
    top_weights,
)

CHANNELS, SIDE = 12, 8


def random_feature(seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def emphasised(feature: Tensor, weights: Tensor) -> Tensor:
    return principal_features(feature, weights).emphasised


def singular_values(feature: Tensor) -> Tensor:
    return principal_features(feature, torch.zeros(CHANNELS)).singular_values


def blended(generated: Tensor, style: Tensor, weights: Tensor) -> Tensor:
    own, of_style = (principal_features(feature, weights) for feature in (generated, style))
    return blended_features(generated, own, of_style)


def by_decomposition(feature: Tensor, weights: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(feature.double().flatten(2), full_matrices=False)
    return (left * (weights * values)[:, None] @ right).view_as(feature)


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q


def test_the_weight_of_the_dominant_direction_is_one_and_the_others_decay_from_there() -> None:
    assert decay_weights(1.0, 3).tolist() == pytest.approx([1, math.exp(-1), math.exp(-2)])
    assert decay_weights(0.5, 3).tolist() == pytest.approx([1, math.exp(-0.5), math.exp(-1)])
    assert decay_weights(math.inf, 3).tolist() == top_weights(1, 3).tolist() == [1, 0, 0]


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0, 5.0, math.inf])
def test_the_gram_route_is_the_singular_value_decomposition(alpha: float) -> None:
    feature, weights = random_feature(0), decay_weights(alpha, CHANNELS)
    torch.testing.assert_close(emphasised(feature, weights), by_decomposition(feature, weights), rtol=0, atol=1e-5)


def test_singular_values_descend_and_are_those_of_the_decomposition() -> None:
    feature = random_feature(1)
    torch.testing.assert_close(singular_values(feature), torch.linalg.svdvals(feature.flatten(2)))


def test_a_feature_of_low_rank_needs_no_care() -> None:
    scales = [
        interpolate(random_feature(n)[..., :side, :side], (SIDE, SIDE), mode="bilinear") for n, side in [(0, 1), (1, 2)]
    ]
    feature, weights = sum(scales), decay_weights(1.0, CHANNELS)
    assert (singular_values(feature)[:, 4:] < 1e-6 * singular_values(feature)[:, :1]).all()
    torch.testing.assert_close(emphasised(feature, weights), by_decomposition(feature, weights), rtol=0, atol=1e-5)


def test_alpha_zero_replaces_and_infinity_swaps_one_component() -> None:
    generated, style = random_feature(0), random_feature(1)
    replaced = blended(generated, style, decay_weights(0.0, CHANNELS))
    torch.testing.assert_close(replaced, style, rtol=0, atol=1e-5)
    swapped = blended(generated, style, decay_weights(math.inf, CHANNELS))
    assert torch.linalg.matrix_rank((swapped - generated).flatten(2), atol=1e-4).tolist() == [2, 2]


def test_a_style_like_the_feature_itself_changes_nothing() -> None:
    feature = random_feature(0)
    torch.testing.assert_close(blended(feature, feature, decay_weights(1.0, CHANNELS)), feature, rtol=0, atol=1e-12)


def test_no_weight_changes_nothing() -> None:
    generated, style = random_feature(0), random_feature(1)
    assert torch.equal(blended(generated, style, torch.zeros(CHANNELS)), generated)


def test_rotating_channels_or_positions_rotates_the_result() -> None:
    feature, weights = random_feature(0).flatten(2), decay_weights(0.7, CHANNELS)

    def phi(flat: Tensor) -> Tensor:
        return emphasised(flat[..., None], weights)[..., 0]

    channels, positions = rotation(CHANNELS), rotation(SIDE**2)
    torch.testing.assert_close(phi(channels @ feature), channels @ phi(feature), rtol=0, atol=1e-5)
    torch.testing.assert_close(phi(feature @ positions), phi(feature) @ positions, rtol=0, atol=1e-5)


def test_samples_of_a_batch_do_not_touch_each_other() -> None:
    feature, weights = random_feature(0, batch=3), decay_weights(1.0, CHANNELS)
    alone = torch.cat([emphasised(feature[i : i + 1], weights) for i in range(3)])
    torch.testing.assert_close(emphasised(feature, weights), alone)


def test_samples_that_were_decomposed_alone_can_be_joined() -> None:
    feature, weights = random_feature(0, batch=3), decay_weights(1.0, CHANNELS)
    alone = joined([principal_features(feature[i : i + 1], weights) for i in range(3)])
    together = principal_features(feature, weights)
    torch.testing.assert_close(alone.emphasised, together.emphasised)
    torch.testing.assert_close(alone.singular_values, together.singular_values)


def test_a_spectrum_is_written_down_with_its_gap() -> None:
    feature = torch.zeros(1, CHANNELS, SIDE, SIDE)
    feature[0, :3].flatten(1)[torch.arange(3), torch.arange(3)] = torch.tensor([1.0, 4.0, 3.0])
    told = principal_features(feature, decay_weights(1.0, CHANNELS)).spectrum(0)
    assert told == {"singular_values": [4.0, 3.0, 1.0, *[0.0] * (CHANNELS - 3)], "gap": 0.25}


def test_the_first_components_are_the_best_approximation_of_their_rank() -> None:
    feature = random_feature(0)
    rest = feature - emphasised(feature, top_weights(3, CHANNELS))
    torch.testing.assert_close(
        rest.flatten(1).norm(dim=1), singular_values(feature)[:, 3:].norm(dim=1), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("alpha", [-0.1, math.nan])
def test_an_impossible_alpha_is_said(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha is"):
        decay_weights(alpha, CHANNELS)


@pytest.mark.parametrize("top_k", [0, CHANNELS + 1])
def test_an_impossible_number_of_components_is_said(top_k: int) -> None:
    with pytest.raises(ValueError, match=f"1 to {CHANNELS}"):
        top_weights(top_k, CHANNELS)
