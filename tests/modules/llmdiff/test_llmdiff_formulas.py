"""LLMDiff's features, loss and gradients against the paper's formulas, which ``formulas.py`` writes out once more."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from src.modules.llmdiff.learner import LLMDiff
from src.modules.llmdiff.options import EncodingOptions
from src.modules.llmdiff.states import read_states
from tests.llmdiff_training import Latents, training
from tests.llms import tiny_llm_folder
from tests.modules.llmdiff.formulas import Written, scores

PROMPTS = ["a red dog on the tree", "a cat", "a very small cat on the left of the blue tree"]
IDS = [[1, 4, 5, 7, 10, 11, 9, 2], [1, 4, 8, 2], [1, 4, 15, 17, 8, 10, 11, 12, 13, 11, 6, 9, 2]]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llm_folder(tmp_path_factory.mktemp("llm"))


def close(one: Tensor, other: Tensor, tolerance: float = 2e-5) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


def shaken(learner: LLMDiff) -> LLMDiff:
    """Weights away from where they started, so that all of them matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        learner.adapter.aggregation.rho += 5  # noise that can be seen
    return learner


@torch.no_grad()
def test_features_are_each_blocks_state_less_that_of_every_token_alone(tmp_path: Path, llm: Path) -> None:
    learner = training(tmp_path, llm).learner
    text, llama = learner.encoder.encode(PROMPTS), learner.encoder.language_model.decoder.module
    assert learner.encoder.language_model.token_ids(PROMPTS, EncodingOptions()) == IDS
    for states, row in zip(text.states, IDS, strict=True):
        expected = torch.stack(scores(llama, row))
        assert close(states[:, : len(row)], expected, 1e-5)
    attended = read_states(
        learner.encoder.language_model.decoder, torch.tensor(IDS[:1]), EncodingOptions(features="sum")
    )
    stock = llama(torch.tensor(IDS[:1]), output_hidden_states=True).hidden_states
    assert torch.equal(attended[:, :3], torch.stack(stock[:3], dim=1))


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("options", [{}, {"snr_gamma": 2.0, "adapter": {"score": "difference"}}], ids=str)
def test_losses_and_all_gradients_are_the_formulas(tmp_path: Path, llm: Path, kind: str, options: dict) -> None:
    learner = shaken(training(tmp_path, llm, kind, caption_dropout=0.5, **options).learner).train()
    latents = Latents(3).latents
    batch = {"caption": PROMPTS, "latents": latents, "step": torch.tensor(0), "position": torch.arange(3)}
    seeds = [2, 3, 1]
    found = learner.losses(batch, [torch.Generator().manual_seed(seed) for seed in seeds])

    formulas = Written(learner.backbone.pipeline, learner.adapter.state_dict())
    llama = learner.encoder.language_model.decoder.module
    noises, timesteps, texts, dropped = [], [], [], []
    for row, seed in zip(IDS, seeds, strict=True):
        # Whether its caption is dropped, then noise, timestep and the noise of its text.
        generator = torch.Generator().manual_seed(seed)
        dropped.append(float(torch.rand((), generator=generator)) < 0.5)
        noises.append(torch.randn(4, 8, 8, generator=generator))
        timesteps.append(int(torch.randint(1000, (1,), generator=generator)))
        ids = [1, 2] if dropped[-1] else row
        noise = torch.randn(len(ids), 32, generator=generator)
        with torch.no_grad():
            terms = scores(llama, ids)
        texts.append(formulas.text(terms, noise, difference="adapter" in options))
    assert len(set(dropped)) == 2
    noise, steps = torch.stack(noises), torch.tensor(timesteps)
    signal = (1 - torch.linspace(0.0001**0.5, 0.02**0.5, 1000) ** 2).cumprod(0)[steps].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    expected = (formulas.predicted(noisy, steps, texts) - noise).square().mean((1, 2, 3))
    if gamma := options.get("snr_gamma"):
        snr = (signal / (1 - signal)).flatten()
        assert (snr > gamma).any()
        expected = expected * snr.clamp(max=gamma) / snr
    assert close(found, expected)
    learner.reduce({"loss": found})[0].backward()
    expected.mean().backward()
    for name, parameter in learner.adapter.named_parameters():
        assert close(parameter.grad, formulas.weights[name].grad, 2e-3), name
    frozen = [*learner.backbone.unet.parameters(), *llama.parameters()]
    assert all(weights.grad is None for weights in frozen)
