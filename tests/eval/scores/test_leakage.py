import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from src.eval.scores.leakage import collapse, reference_leakage, retrieve, text_leakage
from src.eval.scores.similarity import copies


def units(number, seed):
    return normalize(torch.randn(number, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("measure", [reference_leakage, text_leakage])
def test_leakage_is_paired_with_the_baseline(measure):
    generated, baseline, others = units(5, 0), units(5, 1), units(5, 2)
    expected = [g @ o - b @ o for g, b, o in zip(generated.numpy(), baseline.numpy(), others.numpy(), strict=True)]
    np.testing.assert_allclose(measure(generated, baseline, others), expected)
    expected = generated.numpy() @ others[0].numpy() - baseline.numpy() @ others[0].numpy()
    np.testing.assert_allclose(measure(generated, baseline, others[:1]), expected)
    assert torch.equal(measure(baseline, baseline, others), torch.zeros(5, dtype=torch.float64))
    with pytest.raises(ValueError, match="5 images and 4 baselines"):
        measure(generated, baseline[:4], others)


def test_retrieval_counts_leaks_and_own_prompts():
    prompts = torch.eye(4, dtype=torch.float64)
    images, own = prompts[[0, 1, 1, 3, 2]], torch.tensor([0, 0, 1, 3, 2])
    found = retrieve(normalize(images, dim=-1), prompts[:3], own, prompts[3:])
    assert found.leaked.tolist() == [False, False, False, True, False]
    assert found.right.tolist() == [True, False, True, False, True]


def test_retrieval_is_a_few_lines_of_numpy():
    images, prompts, caption, own = units(40, 0), units(9, 1), units(1, 2), torch.arange(40) % 9
    everything = np.concatenate([prompts.numpy(), caption.numpy()])
    nearest = (images.numpy() @ everything.T).argmax(1)
    found = retrieve(images, prompts, own, caption)
    np.testing.assert_array_equal(found.leaked, nearest == 9)
    np.testing.assert_array_equal(found.right, nearest == own.numpy())
    with pytest.raises(ValueError, match="40 images need as many prompt numbers, got 9"):
        retrieve(images, prompts, own[:9], caption)


def test_collapse_is_the_gain_in_likeness():
    generated, baseline = units(7, 0), units(7, 1)
    mean = [(x @ x.T)[np.triu_indices(7, 1)].mean() for x in (generated.numpy(), baseline.numpy())]
    np.testing.assert_allclose(collapse(generated, baseline).mean(), mean[0] - mean[1])
    assert collapse(generated[:1].repeat(7, 1), baseline).min() > 0
    with pytest.raises(ValueError, match="7 images and 6 baselines"):
        collapse(generated, baseline[:6])


def test_copies_are_nearer_than_references_are_to_each_other():
    references = units(4, 0)
    found = copies(torch.cat([units(3, 1), references[2:3]]), references)
    every = references.numpy() @ references.numpy().T
    assert found.ceiling == pytest.approx(every[np.triu_indices(4, 1)].max())
    np.testing.assert_allclose(found.nearest[:3], (units(3, 1).numpy() @ references.numpy().T).max(1))
    above = [nearest > found.ceiling for nearest in found.nearest.tolist()]
    assert above[3] and found.above.tolist() == above
    with pytest.raises(ValueError, match="two references, got 1"):
        copies(references, references[:1])
