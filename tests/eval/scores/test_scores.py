import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from src.eval.scores.similarity import clip_t, diversity, own_reference, pair_mean, within_set


@pytest.fixture
def embeddings():
    return normalize(torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)


def test_clip_t_is_the_cosine_of_each_with_its_own_text(embeddings):
    images, texts = embeddings[:4], embeddings[4:8]
    expected = [np.dot(image, text) for image, text in zip(images.numpy(), texts.numpy(), strict=True)]
    np.testing.assert_allclose(clip_t(images, texts), expected)
    np.testing.assert_allclose(clip_t(images, texts[:1]), images.numpy() @ texts[0].numpy())


def test_clip_t_refuses_another_number_of_texts(embeddings):
    with pytest.raises(ValueError, match="4 images need as many texts"):
        clip_t(embeddings[:4], embeddings[:3])


def test_pair_mean_is_over_all_pairs_and_not_the_cosine_of_means(embeddings):
    generated, references = embeddings[:5].numpy(), embeddings[5:].numpy()
    every = np.array([[np.dot(g, r) for r in references] for g in generated])
    ours = pair_mean(embeddings[:5], embeddings[5:])
    np.testing.assert_allclose(ours, every.mean(1))
    np.testing.assert_allclose(ours.mean(), every.mean())
    means = [side.mean(0) / np.linalg.norm(side.mean(0)) for side in (generated, references)]
    assert abs(float(np.dot(*means))) > abs(every.mean())


def test_within_set_is_the_mean_over_pairs(embeddings):
    x = embeddings.numpy()
    pairs = [np.dot(x[i], x[j]) for i in range(len(x)) for j in range(i + 1, len(x))]
    np.testing.assert_allclose(within_set(embeddings).mean(), np.mean(pairs))
    np.testing.assert_allclose(np.mean(pairs), (np.linalg.norm(x.sum(0)) ** 2 - 9) / (9 * 8))
    with pytest.raises(ValueError, match="at least two"):
        within_set(embeddings[:1])


def test_clip_score_is_scaled_and_clamped_image_by_image():
    images, texts = torch.eye(2, dtype=torch.float64), torch.tensor([[0.3, 0.0], [0.0, -0.2]], dtype=torch.float64)
    np.testing.assert_allclose(clip_t(images, texts), [0.3, -0.2])
    np.testing.assert_allclose(clip_t(images, texts, scale=2.5, clamp=True), [0.75, 0.0])
    np.testing.assert_allclose(clip_t(images, texts, scale=100), [30, -20])


def test_own_reference_is_the_cosine_of_each_with_its_own(embeddings):
    generated, references = embeddings[:4].numpy(), embeddings[4:8].numpy()
    np.testing.assert_allclose(own_reference(embeddings[:4], embeddings[4:8]), np.diag(generated @ references.T))
    np.testing.assert_allclose(own_reference(embeddings[:4], embeddings[4:5]), generated @ references[0])
    with pytest.raises(ValueError, match="4 images need as many references, or one, got 3"):
        own_reference(embeddings[:4], embeddings[4:7])


def test_diversity_is_what_is_missing_to_one(embeddings):
    every = embeddings.numpy() @ embeddings.numpy().T
    np.testing.assert_allclose(diversity(embeddings).mean(), 1 - every[np.triu_indices(9, 1)].mean())
    assert float(diversity(embeddings[:1].repeat(3, 1)).abs().max()) < 1e-12
