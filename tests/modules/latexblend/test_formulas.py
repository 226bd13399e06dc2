"""Loss, gradients and bank of LaTexBlend against the paper's formulas, which ``formulas.py`` writes out once more."""

from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from src.data.subject import ConceptData
from src.modules.backbones.base import Backbone
from src.modules.backbones.pixart import PixArtBackbone
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.flows import Objective, Subject
from src.modules.latexblend.learner import LaTexBlend
from src.modules.training.learner import LearnerModule, TrainingRecord
from tests.modules.latexblend.formulas import TEMPLATES, Written, drawn
from tests.tiny import tiny_pixart, tiny_sd, tiny_sdxl

MAKERS = {"sd": tiny_sd, "sdxl": tiny_sdxl, "pixart": tiny_pixart}
SEEDS = [11, 12, 13]
"""Of three photos; each draws two templates that differ, and noise and timesteps of its own."""


def velocity(folder: Path) -> DiffusionPipeline:
    return tiny_sd(folder, "v_prediction")


def backbone(kind: str, folder: Path, velocities: bool = False) -> Backbone:
    pipeline = velocity(folder) if velocities else MAKERS[kind](folder)
    return PixArtBackbone(pipeline, kind) if kind == "pixart" else UNetBackbone(pipeline, kind)


def pictures(folder: Path, number: int, seed: int) -> Path:
    folder.mkdir()
    for index in range(number):
        pixels = np.random.default_rng([seed, index]).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def learner(folder: Path, kind: str, change: float = 0.1, velocities: bool = False, **options) -> LaTexBlend:
    """Three photos and two class images, prepared; ``change`` is the size of the changes, 0 for where they start."""
    model = backbone(kind, folder, velocities)
    files = (str(folder / "cache"), str(folder / "bank.safetensors"))
    one = LaTexBlend(model, Subject("dog"), *files, **{"seed": 5, **options})
    photos, others = pictures(folder / "photos", 3, 0), pictures(folder / "others", 2, 1)
    one.prepare(ConceptData(str(photos), "dog", 64, class_dir=str(others), num_class_images=2), torch.device("cpu"))
    # A part of each photo does not count, and another part of each.
    mask = torch.ones_like(one.instance[1])
    for row in range(3):
        mask[row, :, : row + 1] = 0
    one.instance = (one.instance[0], mask)
    if change:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in one.parameters():
                parameter += change * torch.randn(parameter.shape, generator=generator)
    return one


def factors(one: LaTexBlend) -> dict[str, list[torch.nn.Parameter]]:
    """The trained tensors of each projection, outermost factor first."""
    found = {}
    for key, change in one.delta.changes.items():
        low_rank = hasattr(change, "up")
        found[key.replace("/", ".")] = [change.up, change.down] if low_rank else [change.weight]
    return found


def written(one: LaTexBlend) -> Written:
    return Written(one.backbone.pipeline, factors(one), list(one.delta.modifier))


def encoded(one: LaTexBlend, folder: str, mirrored: bool = False) -> Tensor:
    """Latents of a folder: pixels in [-1, 1], the posterior's mean, the autoencoder's factor."""
    files = sorted((Path(one.cache_dir).parent / folder).glob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]) / 255.0
    pixels = np.concatenate([pixels, pixels[:, :, ::-1]]) if mirrored else pixels
    images = torch.from_numpy(2 * pixels - 1).permute(0, 3, 1, 2).float()
    vae = one.backbone.pipeline.vae
    with torch.no_grad():
        return vae.encode(images).latent_dist.mean * vae.config.scaling_factor


def by_hand(
    one: LaTexBlend, seeds: list[int], index: list[int], formulas: Written | None = None
) -> tuple[Written, Tensor, Tensor]:
    """The formulas, with the losses of photos and class images; by default of the present weights."""
    formulas, objective = formulas or written(one), one.objective
    templates = TEMPLATES if objective.templates == "pool" else ("photo of {}",)
    photos, masks = encoded(one, "photos"), one.instance[1]
    with_prior = objective.prior_loss_weight > 0
    class_images = encoded(one, "others", mirrored=True)[[at % 4 for at in index]] if with_prior else None
    chosen = [at % 3 for at in index]
    draws = [drawn(seed, len(templates), photos.shape[1:], with_prior) for seed in seeds]
    settings = (templates, objective.base_flow, one.snr_gamma, objective.faithful)
    return formulas, *formulas.losses((photos[chosen], masks[chosen]), class_images, draws, *settings)


def found(one: LaTexBlend, seeds: list[int], index: list[int]) -> dict[str, Tensor]:
    batch = {"index": torch.tensor(index), "position": torch.arange(len(index)), "step": torch.tensor(0)}
    return one.losses(batch, [torch.Generator().manual_seed(seed) for seed in seeds])


def close(one: Tensor, other: Tensor, tolerance: float = 2e-5) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


VARIANTS = [
    {},
    {"rank": 2, "snr_gamma": 2.0, "objective": Objective(prior_loss_weight=0.3)},
    {"objective": Objective(faithful=True, prior_loss_weight=2.5), "rank": 3},
    {"objective": Objective(base_flow=False), "snr_gamma": 5.0},
    {"objective": Objective(base_flow=False, faithful=True, templates="fixed")},
    {"objective": Objective(templates="fixed", prior_loss_weight=0)},
]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("change", [0.1, 0.0], ids=["changed", "start"])
def test_losses_and_all_gradients_are_the_formulas(tmp_path: Path, kind: str, options: dict, change: float) -> None:
    one = learner(tmp_path, kind, change, **options)
    index = [0, 4, 5]  # the photos and the class images take turns, each in its own round
    losses = found(one, SEEDS, index)
    formulas, instance, prior = by_hand(one, SEEDS, index)
    assert close(losses["instance_loss"], instance) and close(losses["prior_loss"], prior)
    weight = one.objective.prior_loss_weight
    expected = instance.mean() + weight * prior.mean()
    loss, logged = one.reduce(losses)
    assert close(loss, expected) and close(logged["loss"], expected) and close(logged["instance_loss"], instance.mean())
    loss.backward()
    expected.backward()
    for name, parameters in factors(one).items():
        for parameter, copy in zip(parameters, formulas.changes[name], strict=True):
            assert close(parameter.grad, copy.grad, 1e-3), name
    for parameter, copy in zip(one.delta.modifier, formulas.modifier, strict=True):
        assert copy.grad.any() and close(parameter.grad, copy.grad, 1e-3)
    parts = (one.backbone.denoiser, one.backbone.vae, *one.backbone.text_encoders)
    assert all(weights.grad is None for part in parts for weights in part.parameters())


@pytest.mark.parametrize("options", [{}, {"snr_gamma": 3.0, "rank": 2}], ids=str)
def test_velocities_have_the_formulas_losses_and_gradients(tmp_path: Path, options: dict) -> None:
    one = learner(tmp_path, "sd", velocities=True, **options)
    loss, _ = one.reduce(found(one, SEEDS, [0, 1, 2]))
    formulas, instance, prior = by_hand(one, SEEDS, [0, 1, 2])
    expected = instance.mean() + prior.mean()
    assert close(loss, expected)
    loss.backward()
    expected.backward()
    for name, parameters in factors(one).items():
        for parameter, copy in zip(parameters, formulas.changes[name], strict=True):
            assert close(parameter.grad, copy.grad, 1e-3), name
    assert close(one.delta.modifier[0].grad, formulas.modifier[0].grad, 1e-3)


class Batches(L.Callback):
    """What each batch shows: the places of photos, its number, and the positions of its samples."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[int], int, list[int]]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: dict, index: int) -> None:
        self.seen.append((batch["index"].tolist(), int(batch["step"]), batch["position"].tolist()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_the_mean_gradient_of_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """``w <- w - lr (g_1 + g_2) / 2``; no two samples of them have the same draws."""
    one = learner(tmp_path, "sd", objective=Objective(prior_loss_weight=0.3))
    formulas, batches = written(one), Batches()
    monkeypatch.setattr(one, "prepare", lambda *_: None)
    folders = {"instance_dir": str(tmp_path / "photos"), "class_dir": str(tmp_path / "others")}
    data = ConceptData(class_noun="dog", resolution=64, batch_size=2, num_class_images=2, num_val=0, **folders)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=accumulate,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
        callbacks=[batches],
        **quiet,
    )
    trainer.fit(LearnerModule(one, partial(torch.optim.SGD, lr=0.5, weight_decay=0.0)), data)
    assert [number for _, number, _ in batches.seen] == list(range(accumulate))
    for index, number, positions in batches.seen:
        seeds = [((5 * 1_000_003 + number) * 4_099) * 61 + position for position in positions]
        _, instance, prior = by_hand(one, seeds, index, formulas)
        ((instance.mean() + 0.3 * prior.mean()) / accumulate).backward()
    for name, parameters in factors(one).items():
        for parameter, copy in zip(parameters, formulas.changes[name], strict=True):
            assert close(parameter - copy.detach(), -0.5 * copy.grad, 1e-2), name
    assert close(one.delta.modifier[0] - formulas.modifier[0].detach(), -0.5 * formulas.modifier[0].grad, 1e-2)


def test_a_validation_is_the_same_loss_of_other_draws(tmp_path: Path) -> None:
    one = learner(tmp_path, "sd", objective=Objective(prior_loss_weight=0.3))
    told = one.validate(torch.tensor([1, 2]), [torch.Generator().manual_seed(seed) for seed in (21, 22)])
    _, instance, prior = by_hand(one, [21, 22], [1, 2])
    assert close(told["loss"], instance + 0.3 * prior) and close(told["instance_loss"], instance)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("rank", [None, 2])
def test_a_bank_is_equation_3_in_memory_and_in_its_file(tmp_path: Path, kind: str, rank: int | None) -> None:
    one = learner(tmp_path, kind, rank=rank)
    expected = written(one).bank()
    rows = one.extract_bank().rows
    assert list(rows) == list(expected)
    for name, row in expected.items():
        assert close(rows[name], row.detach()), name
    for name in filter(lambda name: name.startswith("k."), rows):
        assert not close(rows[name], rows[f"v.{name[2:]}"], 0.1), "keys are not values"
    file = ConceptBank.load(one.export(TrainingRecord(3, 1e-4, 1e-2))["concept bank"])
    for name in expected:
        assert torch.equal(file.rows[name], rows[name].half()), name
