"""LaTexBlend in joint attention: a concept changes its own rows alone, and what is trained is the concept alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from src.data.request import Request
from src.data.subject import ConceptData, Zoom
from src.modules.backbones.base import Backbone
from src.modules.backbones.flux import FluxBackbone
from src.modules.backbones.memory import compute_again
from src.modules.backbones.projections import text_projections
from src.modules.backbones.qwen_image import QwenImageBackbone
from src.modules.backbones.sd3 import SD3Backbone
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank, JointBank
from src.modules.latexblend.flows import Objective, Reading, Subject
from src.modules.latexblend.generator import ConceptGenerator, Placement
from src.modules.latexblend.joint import JointDelta, JointFlow, JointText, joint_blended
from src.modules.latexblend.learner import LaTexBlend
from src.modules.rivals.custom_diffusion import CustomDiffusion
from src.modules.training.diffusion import step_generator
from src.modules.training.learner import LearnerModule, TrainingRecord
from tests.modules.latexblend.test_hooks import HOOKS
from tests.pretrainings import check_resume, module
from tests.tiny import tiny_flux, tiny_qwen_image, tiny_sd, tiny_sd3

JOINT: dict[str, Callable[[Path], Backbone]] = {
    "sd3": lambda folder: SD3Backbone(tiny_sd3(folder), "sd3"),
    "qwen image": lambda folder: QwenImageBackbone(tiny_qwen_image(), "qwen"),
    "flux": lambda folder: FluxBackbone(tiny_flux(folder), "flux"),
}
TEMPLATES = ("photo of {}", "a photo of a {}")


@pytest.fixture(params=JOINT)
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Backbone:
    return JOINT[request.param](tmp_path)


def shaken(delta: JointDelta, seed: int = 0) -> JointDelta:
    generator = torch.Generator().manual_seed(seed)
    for parameter in delta.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return delta


def bank(backbone: Backbone, seed: int, reading: Reading = "concept", noun: str = "dog") -> JointBank:
    delta = shaken(JointFlow(backbone, noun, TEMPLATES, reading=reading).delta, seed)
    told = {"class_noun": noun, "backbone_hash": backbone.fingerprint, "attention": "joint", "reading": reading}
    return JointBank(delta.tensors(), told)


def prediction(backbone: Backbone, plain: str, placements: list[Placement]) -> tuple[Tensor, dict[str, Tensor]]:
    """What the transformer predicts of fixed noise, and what each projection of text gives on the way."""
    seen: dict[str, Tensor] = {}
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noised = backbone.corrupt(latents, [torch.Generator().manual_seed(1)])
    with torch.no_grad(), joint_blended(backbone.denoiser, [placements]):
        handles = [
            one.register_forward_hook(lambda module, inputs, output, name=name: seen.__setitem__(name, output))
            for name, one in text_projections(backbone.denoiser).items()
        ]
        found = backbone.denoise(noised, backbone.encode_text([plain]))
        for handle in handles:
            handle.remove()
    return found, seen


def placed(backbone: Backbone, prompt: str, banks: dict[str, JointBank]) -> tuple[str, list[Placement]]:
    marked, places = backbone.place(prompt, {name: one.class_noun for name, one in banks.items()})
    strengths = [mention.strength for mention in marked.mentions]
    both = zip(places, strengths, strict=True)
    return marked.plain, [Placement(banks[name], positions, strength) for (name, positions), strength in both]


def test_a_strength_of_zero_is_the_plain_noun_bit_for_bit(backbone: Backbone) -> None:
    banks = {"rex": bank(backbone, 1)}
    plain, none = placed(backbone, "a <rex:0> on the grass", banks)
    expected, _ = prediction(backbone, plain, [])
    assert torch.equal(prediction(backbone, plain, none)[0], expected)
    half, whole = (prediction(backbone, *placed(backbone, f"a <rex:{s}> on the grass", banks))[0] for s in (0.5, 1))
    assert not torch.allclose(half, expected, atol=1e-4) and not torch.allclose(half, whole, atol=1e-4)


@pytest.mark.parametrize("reading", ["concept", "constant", "offsets"])
def test_the_first_block_changes_rows_of_the_concept_alone(backbone: Backbone, reading: Reading) -> None:
    """Further on, the other rows have attended to the concept's; here they are what they were, bit for bit."""
    plain, placements = placed(backbone, "a <rex> on the grass", {"rex": bank(backbone, 1, reading)})
    (_, with_concept), (_, without) = prediction(backbone, plain, placements), prediction(backbone, plain, [])
    own = torch.tensor(placements[0].positions)
    others = torch.ones(without["k.transformer_blocks.0.attn"].shape[1], dtype=torch.bool)
    others[own] = False
    for name in ("k.transformer_blocks.0.attn", "v.transformer_blocks.0.attn"):
        assert torch.equal(with_concept[name][:, others], without[name][:, others])
        assert not torch.isclose(with_concept[name][:, own], without[name][:, own]).all(-1).any()


def test_two_concepts_are_each_what_it_is_alone_at_every_projection(backbone: Backbone) -> None:
    banks = {"rex": bank(backbone, 1), "tom": bank(backbone, 2, noun="cat")}
    plain, both = placed(backbone, "a <rex> next to a <tom:0.5>", banks)
    embeds = backbone.encode_text([plain]).prompt_embeds
    together, orders = JointText([both]), JointText([both[::-1]])
    alone = [JointText([[one]]) for one in both]
    entered = together.enter(embeds)
    assert torch.equal(orders.enter(embeds), entered)
    for one, own in zip(alone, both, strict=True):
        assert torch.equal(one.enter(embeds)[0, own.positions], entered[0, own.positions])
        moved = entered[0, own.positions] - embeds[0, own.positions]
        assert torch.allclose(moved, own.strength * own.bank.rows["text"], atol=1e-5)
    for name, linear in text_projections(backbone.denoiser).items():
        hidden = torch.randn(1, embeds.shape[1], linear.in_features, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            projected = linear(hidden)
            found = together(name, hidden, projected.clone())
            assert torch.allclose(found, orders(name, hidden, projected.clone()), atol=1e-5)
            left = torch.ones(embeds.shape[1], dtype=torch.bool)
            for one, own in zip(alone, both, strict=True):
                rows = one(name, hidden, projected.clone())[0, own.positions]
                assert torch.allclose(found[0, own.positions], rows, atol=1e-5)
                down, up = (own.bank.rows[f"{part}.{name}"] for part in ("down", "up"))
                change = own.strength * (hidden[0, own.positions] @ down.T @ up.T)
                assert torch.allclose(rows - projected[0, own.positions], change, atol=1e-4)
                left[own.positions] = False
        assert torch.equal(found[0, left], projected[0, left])


def test_a_concept_of_all_rows_changes_all_text(backbone: Backbone) -> None:
    plain, placements = placed(backbone, "a <rex> on the grass", {"rex": bank(backbone, 1, "all")})
    (_, with_concept), (_, without) = prediction(backbone, plain, placements), prediction(backbone, plain, [])
    name = "k.transformer_blocks.0.attn"
    assert not torch.isclose(with_concept[name], without[name]).all(-1).any()


def learner(backbone: Backbone, folder: Path, reading: Reading = "concept", **options) -> LaTexBlend:
    where = (str(folder), str(folder / "rex.safetensors"))
    made = LaTexBlend(backbone, Subject("dog"), *where, Objective(reading=reading), **options)
    made.prior, made.base_text = None, backbone.encode_text(made.flow.prompts)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    made.instance, made.resolution = (latents, torch.ones(2, 1, 8, 8)), 64
    return made


def loss(made: LaTexBlend, step: int = 0) -> Tensor:
    return made._losses(torch.tensor([0, 1]), [step_generator(0, step, 0, position) for position in (0, 1)])[0]


@pytest.mark.parametrize("reading", ["concept", "offsets", "constant", "all"])
def test_a_training_reaches_the_concepts_tensors_and_nothing_else(
    backbone: Backbone, reading: Reading, tmp_path: Path
) -> None:
    made = learner(backbone, tmp_path, reading)
    shaken(made.delta)
    loss(made).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    for part in (backbone.denoiser, backbone.vae, *backbone.text_encoders):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in part.parameters())


@pytest.mark.parametrize("reading", ["concept", "offsets", "constant", "all"])
def test_drawing_sees_what_training_saw(backbone: Backbone, reading: Reading, tmp_path: Path) -> None:
    """The prediction of a training step is that of the saved and loaded bank, installed in the stock transformer."""
    made = learner(backbone, tmp_path, reading)
    shaken(made.delta)
    made.extract_bank(TrainingRecord(1, 1e-3, 0.0)).save(tmp_path / "rex.safetensors", torch.float32)
    kept = ConceptBank.load(tmp_path / "rex.safetensors")
    assert isinstance(kept, JointBank) and kept.metadata["reading"] == reading
    plain, placements = placed(backbone, "photo of a <subject>", {"subject": kept})
    at = made.flow.prompts.index(plain)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noised = backbone.corrupt(latents, [torch.Generator().manual_seed(1)])
    text, transform = made.flow.read(backbone.encode_text([plain]), [at], [at])
    made._acting = (transform, made.flow.projected_prompts(1, 0))
    with torch.no_grad():
        made_errors = made._denoising_errors(latents, torch.ones(1, 1, 8, 8), text, [step_generator(1, 0)])
        with joint_blended(backbone.denoiser, [placements]):
            again = backbone.corrupt(latents, [step_generator(1, 0)])
            drawn = backbone.denoise(again, backbone.encode_text([plain]))
    assert torch.allclose(((drawn - again.target) ** 2).mean(), made_errors[0], rtol=1e-4)
    assert not torch.equal(noised.noisy_latents, again.noisy_latents)


def test_a_flow_is_matched(backbone: Backbone) -> None:
    """``x_s = (1 - s) x_0 + s noise`` and the target is ``noise - x_0``: from both follows ``x_0 = x_s - s target``."""
    latents = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noised = backbone.corrupt(latents, [step_generator(0, 0, 0, position) for position in range(64)])
    share = (noised.timesteps / 1000).view(-1, 1, 1, 1)
    assert torch.allclose(noised.noisy_latents - share * noised.target, latents, atol=1e-5)
    assert share.min() > 0 and share.max() < 1
    # SD3's schedule is shifted by 3: the middle of a logit-normal draw, s = 0.5, becomes 0.75. That of FLUX depends on
    # the size of an image, and is not.
    assert abs(share.median() - (0.75 if isinstance(backbone, SD3Backbone) else 0.5)) < 0.12


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"keep_context": True}, "keep_context"),
        ({"rectification": {"strength": 1.0}}, "rectification"),
        ({"blending_guidance": {"num_steps": 3}}, "blending_guidance"),
    ],
)
def test_what_reads_cross_attention_is_refused(backbone: Backbone, asked: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"{named}.* acts on the cross-attention"):
        ConceptGenerator(backbone, {"rex": bank(backbone, 1)}, **asked)


def test_a_layout_is_refused(backbone: Backbone) -> None:
    generator = ConceptGenerator(backbone, {"rex": bank(backbone, 1)})
    with pytest.raises(ValueError, match="layout acts on the cross-attention"):
        generator.check([Request("a <rex>", 0, layout={"rex": (0.0, 0.0, 0.5, 1.0)})])


def test_weighting_by_signal_to_noise_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"snr_gamma .* flow matching"):
        learner(backbone, tmp_path, snr_gamma=5.0)


def test_hooks_are_gone_afterwards(backbone: Backbone) -> None:
    before = dict(vars(backbone.denoiser))
    plain, placements = placed(backbone, "a <rex>", {"rex": bank(backbone, 1)})
    with joint_blended(backbone.denoiser, [placements]):
        pass
    assert vars(backbone.denoiser).keys() == before.keys() and not backbone.denoiser._forward_pre_hooks
    assert not any(one._forward_hooks for one in text_projections(backbone.denoiser).values())
    expected, _ = prediction(backbone, plain, [])
    assert torch.equal(prediction(backbone, plain, [])[0], expected)


def test_concepts_are_installed_once(backbone: Backbone) -> None:
    _, placements = placed(backbone, "a <rex>", {"rex": bank(backbone, 1)})
    with (
        joint_blended(backbone.denoiser, [placements]),
        pytest.raises(ValueError, match="already has concepts installed; leave that context first"),
        joint_blended(backbone.denoiser, [placements]),
    ):
        pass
    with joint_blended(backbone.denoiser, [placements]):
        pass


def test_what_would_do_nothing_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    where = (str(tmp_path), str(tmp_path / "rex.safetensors"))
    with pytest.raises(ValueError, match="bank_templates is all, but in .* has no rows to average; leave it out"):
        LaTexBlend(backbone, Subject("dog"), *where, Objective(bank_templates="all"))
    unet = UNetBackbone(tiny_sd(tmp_path), "tiny")
    with pytest.raises(ValueError, match="reading is offsets, but tiny has cross-attention, .* leave it out"):
        LaTexBlend(unet, Subject("dog"), *where, Objective(reading="offsets"))


def test_methods_of_cross_attention_say_that_they_are(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"custom_diffusion is built for .* learn the subject with method=latexblend"):
        CustomDiffusion(backbone, Subject("dog"), str(tmp_path), str(tmp_path / "rex.safetensors"))


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(photos / "0.png")

    def build(folder: Path) -> LearnerModule:
        backbone = SD3Backbone(tiny_sd3(folder), "sd3", {"num_inference_steps": 1})
        where = (str(folder / "cache"), str(folder / "rex.safetensors"))
        return module(LaTexBlend(backbone, Subject("dog"), *where))

    def data(folder: Path) -> ConceptData:
        return ConceptData(str(photos), "dog", 64, batch_size=2, num_views=2, num_class_images=2, zoom=Zoom(0.6))

    check_resume(build, data, tmp_path)


@pytest.mark.parametrize("hooks", HOOKS)
def test_a_picture_with_concepts_is_the_same_with_hooks(backbone: Backbone, hooks: str) -> None:
    def drawn() -> np.ndarray:
        generator = ConceptGenerator(backbone, {"rex": bank(backbone, 1)}, {"num_inference_steps": 2, "resolution": 64})
        return np.stack([np.asarray(one) for one in generator.sample([Request("a <rex>", 0), Request("a cat", 1)])])

    before = drawn()
    HOOKS[hooks](backbone.denoiser)
    assert np.array_equal(drawn(), before)


@pytest.mark.parametrize("saving", ["group offloading", "layerwise casting", "activations computed again"])
def test_every_gradient_is_the_same_where_memory_is_saved(backbone: Backbone, saving: str, tmp_path: Path) -> None:
    made = learner(backbone, tmp_path)
    shaken(made.delta)

    def gradients() -> list[Tensor]:
        made.zero_grad()
        found = loss(made).sum()
        with made.installed():
            found.backward()
        return [parameter.grad.clone() for parameter in made.parameters() if parameter.grad is not None]

    before = gradients()
    (HOOKS | {"activations computed again": compute_again})[saving](backbone.denoiser)
    backbone.denoiser.train()  # Diffusers computes again only where gradients are wanted, and in training.
    assert all(torch.equal(*both) for both in zip(gradients(), before, strict=True))
