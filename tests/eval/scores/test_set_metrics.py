import logging

import numpy as np
import pytest
import torch
from torchmetrics.functional.image.lpips import _NoTrainLpips

from src.data.world.render import render
from src.data.world.scenes import sample_scene
from src.eval.scores.sets import PerceptualDiversity, SetMetrics, to_uint8


@pytest.fixture(scope="module")
def sets():
    return [[render(sample_scene(start + index)) for index in range(40)] for start in (0, 1000)]


@pytest.fixture
def metrics(dino):
    return SetMetrics(dino.model, dino.preprocess, subset_size=30, num_subsets=5)


def frechet(first, second):
    means = [x.mean(0) for x in (first, second)]
    covariances = [np.cov(x, rowvar=False) for x in (first, second)]
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    return ((means[0] - means[1]) ** 2).sum() + sum(np.trace(c) for c in covariances) - 2 * root


def mmd(first, second):
    """Unbiased, with the kernel ``(x y / D + 1) ** 3``."""
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3  # noqa: E731
    n = len(first)
    within = [(k.sum() - np.trace(k)) / (n * (n - 1)) for k in (kernel(first, first), kernel(second, second))]
    return sum(within) - 2 * kernel(first, second).mean()


def test_fid_is_a_few_lines_of_numpy(metrics, sets):
    features = [metrics.features(images).numpy() for images in sets]
    assert features[0].shape == (40, 24)
    assert metrics.fid(*sets) == pytest.approx(frechet(*features), rel=1e-6)
    assert abs(metrics.fid(sets[0], sets[0])) < 1e-6


def test_kid_of_whole_sets_is_a_few_lines_of_numpy(dino, sets):
    metrics = SetMetrics(dino.model, dino.preprocess, subset_size=40, num_subsets=3)
    mean, deviation = metrics.kid(*sets)
    assert mean == pytest.approx(mmd(*[metrics.features(images).numpy() for images in sets]), rel=1e-6)
    assert deviation == pytest.approx(0, abs=1e-9)


def test_the_seed_decides_the_subsets_and_nothing_else(metrics, sets, dino):
    state = torch.get_rng_state()
    assert metrics.kid(*sets) == metrics.kid(*sets)
    assert torch.equal(state, torch.get_rng_state())
    other = SetMetrics(dino.model, dino.preprocess, subset_size=30, num_subsets=5, seed=1)
    assert other.kid(*sets) != metrics.kid(*sets)


def test_too_few_images_are_said(metrics, sets, caplog):
    with pytest.raises(ValueError, match="40 generated and 25 real ones; set subset_size to at most 25"):
        metrics.kid(sets[0], sets[1][:25])
    with pytest.raises(ValueError, match="at least two images on each side, got 1 generated, 40 real"):
        metrics.fid(sets[0][:1], sets[1])
    with pytest.raises(ValueError, match="no images"):
        metrics.fid([], sets[1])
    with caplog.at_level(logging.WARNING):
        metrics.fid(sets[0][:10], sets[1])
    assert "FID of 10 images in 24 dimensions is far too high" in caplog.text


def test_files_and_other_sizes_pass_where_the_network_resizes(sets, tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, images):
            assert images.dtype == torch.uint8
            return images.double().mean((2, 3))

    sets[0][0].save(tmp_path / "one.png")
    features = SetMetrics(Mean()).features([tmp_path / "one.png", sets[0][1].resize((40, 30)), sets[0][2]])
    torch.testing.assert_close(features[0], to_uint8(sets[0][0]).double().mean((1, 2)))


def test_inception_is_fetched_late_and_its_absence_is_a_sentence(sets, monkeypatch):
    metrics = SetMetrics()
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ValueError, match=r'type: pip install -e "\.\[set_metrics\]"'):
        metrics.fid(*sets)


def test_lpips_is_the_mean_over_pairs(sets):
    torch.manual_seed(0)
    network = _NoTrainLpips(net="squeeze", pnet_rand=True)
    diversity = PerceptualDiversity(network)
    images = sets[0][:3]
    x = [to_uint8(image)[None] / 127.5 - 1 for image in images]
    expected = np.mean([float(network(x[i], x[j])) for i, j in ((0, 1), (0, 2), (1, 2))])
    assert diversity(images) == pytest.approx(expected, rel=1e-5)
    assert diversity(images[:1] * 3) == pytest.approx(0, abs=1e-7)


def test_lpips_needs_two_images_of_one_size(sets):
    diversity = PerceptualDiversity(torch.nn.Identity())
    with pytest.raises(ValueError, match="two or more images of one size, got 1"):
        diversity(sets[0][:1])
    with pytest.raises(ValueError, match="got 2 of sizes"):
        diversity([sets[0][0], sets[0][1].resize((32, 32))])
