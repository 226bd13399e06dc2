"""LLMDiff's loss against its definition, its rates, and which captions and noise a sample gets."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from src.modules.backbones.base import Noised, Text
from src.modules.llmdiff.learner import LLMDiff
from src.modules.training.learner import LearnerModule
from tests.llmdiff_training import Latents, training
from tests.llms import tiny_llm_folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llm_folder(tmp_path_factory.mktemp("llm"))


class Erring:
    """Stands for the denoiser: errs by one everywhere, and remembers what it was asked."""

    def __init__(self, learner: LLMDiff, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.captions = list[Noised](), list[str]()
        encode = learner.encoder.encode

        def encoded(prompts: list[str]):
            self.captions += prompts
            return encode(prompts)

        monkeypatch.setattr(learner.backbone, "denoise", self)
        monkeypatch.setattr(learner.encoder, "encode", encoded)

    def __call__(self, noised: Noised, text: Text, size_ids: Tensor | None = None) -> Tensor:
        self.asked.append(noised)
        return noised.target + 1


def batch(step: int, positions: list[int]) -> dict:
    data = Latents(4)
    return {
        "caption": data.captions[: len(positions)],
        "latents": data.latents[: len(positions)],
        "step": torch.tensor(step),
        "position": torch.tensor(positions),
    }


def losses(learner: LLMDiff, step: int, positions: list[int], rank: int = 0, world_size: int = 1) -> Tensor:
    drawn = batch(step, positions)
    return learner.losses(drawn, learner.generators(drawn, rank, world_size))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_with_its_gamma(
    tmp_path: Path, llm: Path, monkeypatch: pytest.MonkeyPatch, gamma: float
) -> None:
    learner = training(tmp_path, llm, snr_gamma=gamma).learner
    denoise = Erring(learner, monkeypatch)
    found = torch.cat([losses(learner, step, [0, 1, 2, 3]) for step in range(4)])
    share = learner.backbone.noise_scheduler.alphas_cumprod[torch.cat([noised.timesteps for noised in denoise.asked])]
    snr = share / (1 - share)
    assert (snr > 5).any() and ((snr > 1) & (snr < 5)).any()
    assert torch.allclose(found, snr.clamp(max=gamma) / snr, rtol=1e-4)


def test_noise_is_new_in_every_step_and_on_every_rank(
    tmp_path: Path, llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = training(tmp_path, llm).learner
    denoise = Erring(learner, monkeypatch)
    # Two ranks with two samples each; positions count over both.
    for step in (0, 1):
        for rank in (0, 1):
            losses(learner, step, [2 * rank, 2 * rank + 1], rank, world_size=2)
    shown = batch(0, [0, 1])
    learner.validate(shown, learner.validation_generators(shown, 0))
    noises = torch.cat([noised.target for noised in denoise.asked]).flatten(1)
    assert len(noises) == 10 and len(noises.unique(dim=0)) == 10


def test_as_many_captions_are_dropped_as_asked_for_and_none_in_validation(
    tmp_path: Path, llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = training(tmp_path, llm, caption_dropout=0.2).learner
    denoise = Erring(learner, monkeypatch)
    for step in range(50):
        losses(learner, step, [0, 1, 2, 3])
    # 200 draws with probability 0.2: 40, and four standard deviations are 23.
    assert 17 <= denoise.captions.count("") <= 63
    denoise.captions.clear()
    shown = batch(0, [0, 1, 2, 3])
    learner.validate(shown, learner.validation_generators(shown, 0))
    assert denoise.captions == shown["caption"]


def test_scalars_have_a_rate_of_their_own_and_only_matrices_decay(tmp_path: Path, llm: Path) -> None:
    def adamw(given) -> torch.optim.Optimizer:
        return torch.optim.AdamW(given, lr=1e-4, weight_decay=1e-2)

    learner = training(tmp_path, llm).learner
    optimizer = adamw(LearnerModule(learner, adamw, {"scalars": 1e-3})._groups())
    settings = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    scalars = ("gain", "rho", "a1", "b1", "a2", "b2")
    for name, parameter in learner.named_parameters():
        last = name.rpartition(".")[2]
        # phi's bias has a row for each position, and is a bias all the same.
        decays = parameter.ndim == 2 and last == "weight"
        assert settings[id(parameter)] == ((1e-3, 0) if last in scalars else (1e-4, 1e-2 if decays else 0)), name
    assert {name.rpartition(".")[2] for name, _ in learner.named_parameters()} >= set(scalars)
