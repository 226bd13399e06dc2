"""Learning one concept: what moves, what must not, and that a resumed run is the same run."""

from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image

from src.data.known_words import write_known_words
from src.data.request import Request
from src.data.subject import ConceptData, Zoom
from src.modules.backbones.base import text_projections
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.flows import Objective, Subject
from src.modules.latexblend.generator import ConceptGenerator
from src.modules.latexblend.learner import LaTexBlend
from src.modules.training.diffusion import step_generator
from src.modules.training.learner import LearnerModule
from tests.modules.latexblend.test_formulas import written
from tests.tiny import SDXL_UNET, tiny_sd, tiny_sdxl

MAKERS = {"sd": tiny_sd, "sdxl": tiny_sdxl}
OBJECTIVES = ({"base_flow": False}, {"templates": "fixed", "faithful": True})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 255, (80, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def data(photos: Path, **options) -> ConceptData:
    settings = {"resolution": 64, "batch_size": 2, "num_views": 4, "num_class_images": 2, "zoom": Zoom(0.6)}
    return ConceptData(str(photos), "dog", **(settings | options))


def module(
    tmp_path: Path, kind: str = "sd", lr: float = 1e-2, objective: dict | None = None, **options
) -> LearnerModule:
    backbone = UNetBackbone(MAKERS[kind](tmp_path), kind)
    where, said = (str(tmp_path / "cache"), str(tmp_path / "bank.safetensors")), Objective(**(objective or {}))
    learner = LaTexBlend(backbone, Subject("dog"), *where, said, **{"seed": 3, **options})
    return LearnerModule(learner, partial(torch.optim.AdamW, lr=lr))


def trainer(steps: int, folder: Path, **options) -> L.Trainer:
    settings = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=folder,
        use_distributed_sampler=False,
        **(settings | options),
    )


def all_weights(backbone: UNetBackbone) -> dict[str, torch.Tensor]:
    parts = {"unet": backbone.unet, "vae": backbone.vae, **{str(i): e for i, e in enumerate(backbone.text_encoders)}}
    return {f"{p}.{n}": t.clone() for p, part in parts.items() for n, t in part.state_dict().items()}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("options", [{}, {"rank": 2}, *({"objective": each} for each in OBJECTIVES)])
def test_training_moves_the_concept_and_nothing_else(tmp_path: Path, photos: Path, kind: str, options: dict) -> None:
    training = module(tmp_path, kind, **options)
    learner = training.learner
    frozen, trained = all_weights(learner.backbone), {n: p.clone() for n, p in learner.named_parameters()}
    trainer(3, tmp_path).fit(training, data(photos))
    after = all_weights(learner.backbone)
    assert all(torch.equal(frozen[name], after[name]) for name in frozen)
    moved = {name for name, parameter in learner.named_parameters() if not torch.equal(parameter, trained[name])}
    # A low-rank change starts with its second factor at zero, so the first moves from the second step on.
    assert moved == set(trained)
    assert not any(key.startswith(("unet", "vae", "_backbone")) for key in learner.state_dict())


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_at_the_start_a_concept_that_says_the_article_changes_nothing(tmp_path: Path, photos: Path, kind: str) -> None:
    """V* = "a" with zero changes makes both flows one, so the noise prediction is the plain one."""
    training = module(tmp_path, kind, initializer="a", objective={"templates": "fixed", "prior_loss_weight": 0})
    learner = training.learner
    trainer(0, tmp_path).fit(training, data(photos))
    concept = learner.flow.concept_text([0])
    assert torch.allclose(concept.prompt_embeds, learner.base_text.prompt_embeds, atol=1e-6)
    transform = learner.flow.transform(concept, [0], [0])
    for name, linear in learner.flow.projections.items():
        plain = linear(learner.base_text.prompt_embeds)
        assert torch.allclose(transform(name, learner.base_text.prompt_embeds, plain), plain, atol=1e-6)


def test_only_the_rows_of_the_concept_carry_gradient(tmp_path: Path, photos: Path) -> None:
    """Of ``sum(G * (E W'^T))`` the gradient by W' is ``G^T E``; the rows of the base flow have none, by nothing."""
    training = module(tmp_path, objective={"prior_loss_weight": 0})
    learner = training.learner
    trainer(0, tmp_path).fit(training, data(photos))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    concept_at, base_at = [6, 0], [1, 3]
    concept = learner.flow.concept_text(concept_at)
    transform = learner.flow.transform(concept, concept_at, base_at)
    hidden, parameters = learner.base_text.prompt_embeds[base_at], list(learner.parameters())
    alone = [(at, learner.flow.concept_text([at]).prompt_embeds[0]) for at in concept_at]
    rows = torch.cat([states[learner.flow.positions[at]] for at, states in alone])
    for name, linear in learner.flow.projections.items():
        blended = transform(name, hidden, linear(hidden))
        slopes = torch.randn(blended.shape, generator=generator)
        inside = torch.zeros(blended.shape[:2], dtype=torch.bool)
        for row, at in enumerate(base_at):
            inside[row, learner.flow.positions[at]] = True
        assert torch.equal(blended[~inside], linear(hidden)[~inside])
        outside = torch.autograd.grad(
            (slopes * blended)[~inside].sum(), parameters, retain_graph=True, materialize_grads=True
        )
        assert not any(gradient.any() for gradient in outside), name
        changed = learner.delta.changes[name.replace(".", "/")].weight
        found, of_modifier = torch.autograd.grad(
            (slopes * blended)[inside].sum(), [changed, learner.delta.modifier[0]], retain_graph=True
        )
        assert torch.allclose(found, slopes[inside].T @ rows, atol=1e-4), name
        assert of_modifier.any()


def test_the_loss_of_a_sample_does_not_depend_on_its_batch(tmp_path: Path, photos: Path) -> None:
    training = module(tmp_path, snr_gamma=5.0)
    learner = training.learner
    trainer(0, tmp_path).fit(training, data(photos))

    def losses(rows: list[int]) -> torch.Tensor:
        return learner._losses(torch.tensor(rows), [step_generator(0, 0, 0, row) for row in rows])[0]

    assert torch.allclose(losses([0, 1, 2]), torch.cat([losses([0]), losses([1]), losses([2])]), rtol=1e-4)


def test_the_reference_scaling_sums_over_latent_channels(tmp_path: Path, photos: Path) -> None:
    totals = []
    for faithful in (False, True):
        training = module(tmp_path, objective={"faithful": faithful})
        learner = training.learner
        trainer(0, tmp_path).fit(training, data(photos))
        totals.append(learner._losses(torch.tensor([0]), [step_generator(0, 0, 0, 0)]))
    assert torch.allclose(totals[1][0], 4 * totals[0][0])
    assert torch.allclose(totals[1][1], totals[0][1])


def test_stopping_and_going_on_equals_never_stopping_bit_for_bit(tmp_path: Path, photos: Path) -> None:
    whole = module(tmp_path)
    once = trainer(4, tmp_path)
    once.fit(whole, data(photos))
    first = module(tmp_path)
    stopped = trainer(2, tmp_path, enable_checkpointing=True)
    stopped.fit(first, data(photos))
    checkpoint = tmp_path / "two.ckpt"
    stopped.save_checkpoint(checkpoint)
    second = module(tmp_path)
    resumed = trainer(4, tmp_path)
    resumed.fit(second, data(photos), ckpt_path=str(checkpoint))
    for name, parameter in whole.state_dict().items():
        assert torch.equal(parameter, second.state_dict()[name]), name
    for ours, theirs in zip(
        once.optimizers[0].state_dict()["state"].values(),
        resumed.optimizers[0].state_dict()["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])) for key in ours)
    trained = sum(p.numel() * 4 for p in whole.parameters())
    assert checkpoint.stat().st_size < 3 * trained + 300_000
    kept = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert len(kept) == len(whole.state_dict()) and all(key.endswith(tuple(kept)) for key in whole.state_dict())


def test_validation_leaves_losses_weights_and_random_state_alone(tmp_path: Path, photos: Path) -> None:
    class Losses(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: dict, *args) -> None:
            trace.append(outputs["loss"].item())

    ends = []
    for num_val in (0, 3):
        trace: list[float] = []
        training = module(tmp_path)
        learner = training.learner
        run = trainer(4, tmp_path, callbacks=[Losses()], val_check_interval=2, check_val_every_n_epoch=None)
        run.fit(training, data(photos, num_val=num_val))
        ends.append((trace, torch.get_rng_state().tolist(), [p.tolist() for p in learner.parameters()]))
    assert ends[0] == ends[1] and len(ends[0][0]) == 4
    assert run.callback_metrics["val/loss"] > 0


def test_the_validation_loss_depends_on_the_weights_alone(tmp_path: Path, photos: Path) -> None:
    training, source = module(tmp_path), data(photos, num_val=3)

    def validate() -> float:
        return trainer(0, tmp_path).validate(training, source, verbose=False)[0]["val/loss"]

    first = validate()
    torch.rand(5)
    assert validate() == first
    trainer(2, tmp_path).fit(training, source)
    assert validate() != first
    assert not any(p.grad is not None and p.grad.any() for p in training.parameters())


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("rank", [None, 2])
def test_a_bank_is_equation_3_of_what_a_training_learnt(
    tmp_path: Path, photos: Path, kind: str, rank: int | None
) -> None:
    """``W' h`` of "V* dog", in plain torch from the trained weights; the rows of "a dog" are others."""
    training = module(tmp_path, kind, rank=rank)
    learner = training.learner
    untrained = written(learner).bank()
    trainer(2, tmp_path).fit(training, data(photos))
    bank = ConceptBank.load(Path(training.export()["concept bank"]))
    assert bank.class_noun == "dog" and bank.num_tokens == 2
    assert bank.metadata["steps"] == "2"
    expected = written(learner).bank()
    assert bank.rows.keys() == expected.keys()
    for name, row in bank.rows.items():
        assert torch.allclose(row.float(), expected[name], atol=2e-3), name
        assert not torch.allclose(row.float(), untrained[name], atol=1e-2), name


def test_an_sdxl_bank_is_as_small_as_the_arithmetic_says(tmp_path: Path) -> None:
    """70 layers, 10 x 640 + 60 x 1280 wide, keys and values, two tokens, two bytes: 665,600 bytes and a header."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL_UNET)
    projections = text_projections(unet)
    assert len(projections) == 140
    assert sum(linear.weight.numel() for linear in projections.values()) == 340_787_200
    rows = {name: torch.zeros(2, linear.out_features) for name, linear in projections.items()}
    size = (
        ConceptBank(rows, {"class_noun": "dog", "backbone_hash": "f00"})
        .save(tmp_path / "sdxl.safetensors")
        .stat()
        .st_size
    )
    assert 665_600 < size < 665_600 + 20_000


@pytest.mark.parametrize(
    ("options", "message"),
    [({"objective": {"templates": "pol"}}, "choose pool or fixed"), ({"rank": 0}, "positive number")],
)
def test_options_out_of_range_are_said(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(tmp_path, **options)


def test_a_name_that_no_prompt_can_name_is_refused_before_the_weights_are_read(root: Path) -> None:
    """The subject stands before the backbone, which here could not be read."""
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        told = ["+experiment=concept_dog", "concept=my.dog", "backbone.path=/nowhere", "paths.run_dir=."]
        cfg = compose("train", told)
    with pytest.raises(InstantiationException, match="concept is 'my.dog', which no prompt can name.*such as my_dog"):
        instantiate(cfg.method, _convert_="all")


def test_a_noun_that_the_model_was_never_taught_is_said_at_the_start(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In training once, and in drawing, with the noun in the place of the concept."""
    tiny_sd(tmp_path).save_pretrained(tmp_path / "sd")
    write_known_words(tmp_path / "sd", ["a", "dog", "on", "the", "grass"])
    backbone = UNetBackbone.from_pretrained(str(tmp_path / "sd"))
    for noun, said in (("dog", []), ("vase", ["vase"])):
        caplog.clear()
        subject = Subject(noun, "rex")
        learner = LaTexBlend(backbone, subject, str(tmp_path), str(tmp_path / "x.safetensors"), initializer=None)
        learner.prepare(data(photos), torch.device("cpu"))
        generator = ConceptGenerator(backbone, {"rex": learner.extract_bank()})
        generator.check([Request("a <rex> on the grass", 0), Request("a <rex>", 1)])
        messages = [record.getMessage() for record in caplog.records if "never taught" in record.getMessage()]
        assert len(messages) == 2 * len(said)
        assert all("never taught vase:" in message for message in messages)


def test_grids_before_the_first_step_draw_the_plain_prompt_that_later_ones_mark(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a prompt that cannot be drawn is refused then, not after hundreds of steps."""
    drawn: list[Request] = []
    backbone = UNetBackbone(tiny_sd(tmp_path), "tiny")
    learner = LaTexBlend(backbone, Subject("dog", "rex"), str(tmp_path), str(tmp_path / "x.safetensors"))
    learner.prepare(data(photos), torch.device("cpu"))
    monkeypatch.setattr(ConceptGenerator, "sample", lambda self, requests: drawn.extend(requests))
    learner.sample([Request("<rex> and a cat", 3)], steps=0)
    assert drawn == [Request("a dog and a cat", 3)]
    with pytest.raises(ValueError, match="plural"):
        learner.sample([Request("a <rex>s", 3)], steps=0)
