"""The loss against its definition: what it counts and weighs, and how its parameters are to move.

The denoiser is replaced by one that knows the answer and errs by a given amount, so that every loss is known.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from src.data.subject import ConceptData
from src.modules.backbones.base import Noised, Text
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.flows import LowRank, Objective, Subject
from src.modules.latexblend.learner import LaTexBlend
from src.modules.training.learner import LearnerModule
from tests.tiny import tiny_sd


class Erring:
    """Predicts the target and an error; remembers what it was asked."""

    def __init__(self, error: Tensor | float) -> None:
        self.error, self.asked, self.texts = error, list[Noised](), list[Text]()

    def __call__(self, noised: Noised, text: Text, size_ids: Tensor | None = None) -> Tensor:
        self.asked.append(noised)
        self.texts.append(text)
        return noised.target + self.error


def learner(tmp_path: Path, **options) -> LaTexBlend:
    """Two photos, prepared, with random changes that are not zero."""
    folder = tmp_path / "photos"
    folder.mkdir(exist_ok=True)
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    options = {"objective": Objective(prior_loss_weight=0)} | options
    one = LaTexBlend(UNetBackbone(tiny_sd(tmp_path), "sd"), Subject("dog"), str(tmp_path / "cache"), "", **options)
    one.prepare(ConceptData(str(folder), "dog", 64, num_class_images=2), torch.device("cpu"))
    with torch.no_grad():
        for parameter in one.delta.changes.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return one


def erring(one: LaTexBlend, error: Tensor | float, monkeypatch: pytest.MonkeyPatch) -> Erring:
    denoise = Erring(error)
    monkeypatch.setattr(one.backbone, "denoise", denoise)
    return denoise


def batch(step: int, positions: list[int]) -> dict[str, Tensor]:
    return {"index": torch.tensor(positions), "position": torch.tensor(positions), "step": torch.tensor(step)}


def losses(one: LaTexBlend, step: int = 0, positions: list[int] | None = None) -> dict[str, Tensor]:
    drawn = batch(step, positions or [0, 1])
    return one.losses(drawn, one.generators(drawn, 0, 1))


def test_cells_outside_the_mask_of_an_augmented_photo_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = learner(tmp_path)
    latents, mask = one.instance
    mask = torch.zeros_like(mask)
    mask[:, :, :4] = 1
    one.instance = (latents, mask)
    error = torch.where(mask.expand_as(latents).bool(), 2.0, 100.0)
    erring(one, error, monkeypatch)
    assert torch.allclose(losses(one)["instance_loss"], torch.tensor([4.0, 4.0]))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_with_its_gamma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gamma: float) -> None:
    one = learner(tmp_path, snr_gamma=gamma)
    denoise = erring(one, 1.0, monkeypatch)
    found = torch.cat([losses(one, step)["instance_loss"] for step in range(8)])
    share = one.backbone.noise_scheduler.alphas_cumprod[torch.cat([noised.timesteps for noised in denoise.asked])]
    snr = share / (1 - share)
    assert (snr > 5).any() and ((snr > 1) & (snr < 5)).any()
    assert torch.allclose(found, snr.clamp(max=gamma) / snr, rtol=1e-4)


def test_the_prior_counts_with_its_weight(tmp_path: Path) -> None:
    one = learner(tmp_path, objective=Objective(prior_loss_weight=0.5))
    loss, told = one.reduce({"instance_loss": torch.tensor([1.0, 3.0]), "prior_loss": torch.tensor([2.0, 6.0])})
    assert (loss.item(), told["instance_loss"].item()) == (4.0, 2.0)


def test_the_prior_is_of_class_images_under_the_plain_noun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner(tmp_path, objective=Objective())
    denoise = erring(one, 0.0, monkeypatch)
    drawn = batch(0, [0, 1])
    one.losses(drawn, one.generators(drawn, 0, 1))
    noised = denoise.asked[0]
    scheduler, noise = one.backbone.noise_scheduler, noised.target
    latents = torch.cat([one.instance[0][:2], one.prior[0][:2]])
    assert torch.allclose(noised.noisy_latents, scheduler.add_noise(latents, noise, noised.timesteps), atol=1e-6)
    assert len(noise.flatten(1).unique(dim=0)) == 4
    plain = one.backbone.encode_text(["dog"]).prompt_embeds
    assert torch.allclose(denoise.texts[0].prompt_embeds[2:], plain.expand(2, -1, -1), atol=1e-6)


def test_noise_is_new_in_every_step_for_every_sample_and_in_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = learner(tmp_path)
    denoise = erring(one, 0.0, monkeypatch)
    for step in (0, 1):
        losses(one, step)
    for start in (0, 1):
        drawn = torch.tensor([start])
        one.validate(drawn, one.validation_generators(drawn, 0))
    noises = torch.cat([noised.target for noised in denoise.asked]).flatten(1)
    assert len(noises) == 6 and len(noises.unique(dim=0)) == 6


def test_both_flows_draw_their_templates_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, pairs = learner(tmp_path), []
    erring(one, 0.0, monkeypatch)
    transform = one.flow.transform

    def watched(concept: Text, concept_at: list[int], base_at: list[int], num_prior: int):
        pairs.extend(zip(concept_at, base_at, strict=True))
        return transform(concept, concept_at, base_at, num_prior)

    monkeypatch.setattr(one.flow, "transform", watched)
    for step in range(8):
        losses(one, step)
    equal = sum(first == second for first, second in pairs)
    assert len({second for _, second in pairs}) > 1 and equal < len(pairs) / 2


def test_pixels_are_encoded_from_minus_one_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    encode = UNetBackbone.encode_images

    def watched(self: UNetBackbone, pixel_values: Tensor) -> Tensor:
        seen.append(pixel_values)
        return encode(self, pixel_values)

    monkeypatch.setattr(UNetBackbone, "encode_images", watched)
    learner(tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "photos" / "0.png")).transpose(2, 0, 1)
    assert np.allclose(seen[0][0].numpy(), 2 * (pixels / 255.0) - 1, atol=1e-6)


def test_the_modifier_has_a_rate_of_its_own_and_does_not_decay(tmp_path: Path) -> None:
    def adamw(given) -> torch.optim.Optimizer:
        return torch.optim.AdamW(given, lr=1e-4, weight_decay=1e-2)

    one = learner(tmp_path)
    module = LearnerModule(one, adamw, {"modifier": 7e-4})
    optimizer = adamw(module._groups())
    settings = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in one.named_parameters():
        assert settings[id(parameter)] == ((7e-4, 0) if "modifier" in name else (1e-4, 1e-2)), name


def rows_of(one: LaTexBlend, template: int) -> Tensor:
    """States of "V* noun" in one template."""
    return one.flow.concept_text([template]).prompt_embeds[0, one.flow.positions[template]]


@torch.no_grad()
def test_a_blended_layer_is_the_papers_formula(tmp_path: Path) -> None:
    """``Blend(W_0 h_b, W' h_c)`` for photos, ``W' h`` for class images, each flow with the span of its own template."""
    one = learner(tmp_path, rank=2)
    flow = one.flow
    starts = {int(start): at for at, start in reversed(list(enumerate(flow.starts[0])))}
    concept_at, base_at = list(starts.values())[:2], list(starts.values())[:2][::-1]
    assert not torch.equal(flow.positions[concept_at[0]], flow.positions[base_at[0]])
    text = one.backbone.encode_text([flow.prompts[at] for at in base_at]).prompt_embeds
    prior = one.backbone.encode_text(["dog"]).prompt_embeds
    hidden = torch.cat([text, prior])
    transform = flow.transform(flow.concept_text(concept_at), concept_at, base_at, num_prior=1)
    assert flow.projected_prompts(2, 1) == len(hidden)
    for name, linear in flow.projections.items():
        change = flow.delta.changes[name.replace(".", "/")]
        trained = linear.weight + change.up @ change.down
        expected = linear(hidden)
        for row, (template, base) in enumerate(zip(concept_at, base_at, strict=True)):
            expected[row, flow.positions[base]] = rows_of(one, template) @ trained.T
        expected[2] = prior[0] @ trained.T
        assert torch.allclose(transform(name, hidden, linear(hidden)), expected, atol=1e-5), name
    assert isinstance(change, LowRank)


def test_class_images_share_one_change_whose_gradient_is_of_all_of_them(tmp_path: Path) -> None:
    """``W' = W_0 + D``: of ``sum(G * (E W'^T))`` the gradient by D is ``G^T E``, over photos and class images."""
    one = learner(tmp_path)
    flow = one.flow
    text = one.backbone.encode_text([flow.prompts[0]]).prompt_embeds
    prior = one.backbone.encode_text(["dog"]).prompt_embeds[0]
    hidden = torch.cat([text, prior[None]])
    transform = flow.transform(flow.concept_text([0]), [0], [0], num_prior=3)
    generator = torch.Generator().manual_seed(0)
    for name, linear in flow.projections.items():
        found = transform(name, hidden, linear(hidden))
        assert len(found) == 4 and torch.equal(found[1], found[3])
        slopes = torch.randn(found.shape, generator=generator)
        change = flow.delta.changes[name.replace(".", "/")].weight
        (gradient,) = torch.autograd.grad((slopes * found).sum(), [change])
        rows = slopes[0, flow.positions[0]].T @ rows_of(one, 0) + slopes[1:].sum(0).T @ prior
        assert torch.allclose(gradient, rows, atol=1e-4), name


@torch.no_grad()
def test_a_bank_holds_the_trained_rows_of_the_extraction_template(tmp_path: Path) -> None:
    one = learner(tmp_path, rank=2)
    flow, bank = one.flow, one.extract_bank()
    rows = rows_of(one, flow.prompts.index("photo of a dog"))
    for name, linear in flow.projections.items():
        change = flow.delta.changes[name.replace(".", "/")]
        assert torch.allclose(bank.rows[name], rows @ (linear.weight + change.up @ change.down).T, atol=1e-5), name


@torch.no_grad()
def test_a_bank_of_all_templates_holds_the_mean_of_their_rows(tmp_path: Path) -> None:
    one = learner(tmp_path, rank=2, objective=Objective(prior_loss_weight=0, bank_templates="all"))
    flow, bank = one.flow, one.extract_bank()
    assert bank.metadata["bank_templates"] == "all"
    rows = sum(rows_of(one, at) for at in range(7)) / 7
    for name, linear in flow.projections.items():
        change = flow.delta.changes[name.replace(".", "/")]
        assert torch.allclose(bank.rows[name], rows @ (linear.weight + change.up @ change.down).T, atol=1e-5), name
    only = learner(tmp_path, rank=2, objective=Objective(prior_loss_weight=0, templates="fixed", bank_templates="all"))
    assert "bank_templates" not in only.extract_bank().metadata


def test_the_modifier_stands_in_the_place_of_the_article(tmp_path: Path) -> None:
    """Causal encoders: up to the article the states of a prompt are the plain ones, from there on not."""
    one = learner(tmp_path)
    at = int(one.flow.starts[0].argmax())
    plain = one.backbone.encode_text([one.flow.prompts[at]]).prompt_embeds[0]
    changed = one.flow.concept_text([at]).prompt_embeds[0]
    start = int(one.flow.starts[0][at])
    assert start > 2 and torch.allclose(changed[:start], plain[:start], atol=1e-6)
    assert not torch.allclose(changed[start], plain[start], atol=1e-3)
