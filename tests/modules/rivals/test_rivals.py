"""Rivals of LaTexBlend: without concepts they are the stock pipeline; each formula against one written here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from src.data.banks import refuse_other_method
from src.data.prompts import TEMPLATES, concept_span
from src.data.request import Request
from src.data.schema import RefusedFileError
from src.data.subject import ConceptData
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.flows import Subject
from src.modules.rivals.concept import RivalConcept, layer_named
from src.modules.rivals.cones2 import Cones2
from src.modules.rivals.custom_diffusion import (
    CustomDiffusion,
    CustomDiffusionGenerator,
    JointCustomDiffusion,
    constrained_merge,
)
from src.modules.rivals.dreambooth_lora import DreamBoothLoRA, DreamBoothLoRAGenerator
from src.modules.rivals.generator import RivalGenerator
from src.modules.rivals.joint import JointLearner
from src.modules.rivals.learner import RivalLearner
from src.modules.rivals.mix_of_show import MixOfShow, fused
from src.modules.rivals.mudi import MuDI
from src.modules.rivals.omg import OMGGenerator, masks_of
from src.modules.rivals.textual_inversion import TextualInversion
from src.modules.training.learner import TrainingRecord
from tests.tiny import tiny_sd, tiny_sdxl

LEARNERS: list[type[RivalLearner]] = [
    *(TextualInversion, CustomDiffusion, DreamBoothLoRA, MixOfShow, Cones2),
    *(JointCustomDiffusion, MuDI),
]
SUBJECTS = Path(__file__).parents[3] / "world" / "subjects"
SAMPLING = {"num_inference_steps": 3, "guidance_scale": 3.0, "resolution": 64}
NOUNS = {"rex": "dog", "mittens": "cat"}
TWO = "a <rex> left of a <mittens>"
Make = Callable[[], UNetBackbone]


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A maker of the same tiny backbone each time: learners wrap theirs."""
    tiny = {"sd": tiny_sd, "sdxl": tiny_sdxl}[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return lambda: UNetBackbone(tiny(folder), request.param)


def learner_of(kind: type[RivalLearner], make: Make, name: str, folder: Path, **settings: Any) -> RivalLearner:
    subject = Subject(NOUNS[name], name, str(SUBJECTS / name))
    return kind(make(), subject, str(folder), str(folder / f"{name}.safetensors"), **settings)


def stirred(learner: RivalLearner) -> RivalLearner:
    """A learner whose every trained number is away from its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner.averaged_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    learner.after_step()
    return learner


def learnt(kind: type[RivalLearner], make: Make, folder: Path) -> dict[str, RivalConcept]:
    if issubclass(kind, JointLearner):
        others = {"mittens": {"class_noun": "cat", "instance_dir": str(SUBJECTS / "mittens")}}
        learner = stirred(learner_of(kind, make, "rex", folder, others=others))
        return dict.fromkeys(NOUNS, RivalConcept.load(learner.export(TrainingRecord(1, 0.1, 0.0))["concept bank"]))
    paths = [stirred(learner_of(kind, make, name, folder)).export(TrainingRecord(1, 0.1, 0.0)) for name in NOUNS]
    return {name: RivalConcept.load(path["concept bank"]) for name, path in zip(NOUNS, paths, strict=True)}


def drawn(generator: RivalGenerator, *prompts: str) -> np.ndarray:
    return np.stack([np.asarray(image).astype(int) for image in generator.sample([Request(p, 0) for p in prompts])])


def stepped(learner: RivalLearner, root: Path) -> dict[str, torch.Tensor]:
    """One backward pass on the shipped photos; returns losses."""
    dog, cat = (str(root / "world" / "subjects" / name) for name in NOUNS)
    data = ConceptData(dog, "dog", resolution=64, class_dir=cat, num_class_images=2, num_views=4)
    learner.prepare(data, torch.device("cpu"))
    batch = {"index": torch.tensor([0, 1]), "position": torch.tensor([0, 1]), "step": torch.tensor(0)}
    losses = learner.losses(batch, learner.generators(batch, 0, 1))
    learner.reduce(losses)[0].backward()
    return losses


@pytest.mark.parametrize("kind", LEARNERS)
def test_without_concepts_it_is_the_stock_pipeline_and_leaves_it_as_it_was(kind, make, tmp_path):
    backbone = make()
    before = {name: weight.clone() for name, weight in backbone.denoiser.state_dict().items()}
    tensors = [weight.data_ptr() for weight in backbone.denoiser.parameters()]
    generator = kind.draws(backbone, learnt(kind, make, tmp_path), SAMPLING)
    stock = np.asarray(make().draw(["a dog"], [0], generator.sampling)[0])
    alone = drawn(generator, "a <rex>", "a dog", TWO)
    assert (alone[1] == stock).all()
    assert (alone[0] != stock).any() and (alone[2] != drawn(generator, "a dog left of a cat")[0]).any()
    assert all((weight == before[name]).all() for name, weight in backbone.denoiser.state_dict().items())
    assert [weight.data_ptr() for weight in backbone.denoiser.parameters()] == tensors
    # An image does not depend on what is drawn with it, but for rounding.
    assert abs(alone[2] - drawn(generator, TWO)[0]).max() <= 1


@pytest.mark.parametrize("kind", LEARNERS)
def test_every_trained_number_gets_a_gradient_and_no_other(kind, make, tmp_path, root):
    learner = stirred(learner_of(kind, make, "rex", tmp_path))
    losses = stepped(learner, root)
    # SDXL reads the states before its text encoders' last layers, which so get none.
    unread = [one for one in learner.averaged_parameters() if one.grad is None]
    assert not unread or learner.backbone.is_sdxl and kind in (MixOfShow, Cones2)
    trained = {id(parameter) for parameter in learner.averaged_parameters()}
    backbone = learner.backbone
    for module in (backbone.denoiser, backbone.vae, *backbone.text_encoders):
        assert not [name for name, one in module.named_parameters() if one.grad is not None and id(one) not in trained]
    means = {name: one.mean() for name, one in losses.items()}
    expected = means["instance_loss"] + learner.prior_loss_weight * means.get("prior_loss", 0)
    expected = expected + getattr(learner, "preservation_weight", 0) * means.get("preservation_loss", 0)
    torch.testing.assert_close(learner.reduce(losses)[0], expected)
    assert ("prior_loss" in losses) == (learner.prior_loss_weight > 0)


# A residual of Cones 2 is a mean over templates, which the next test has.
@pytest.mark.parametrize("kind", [kind for kind in LEARNERS if kind is not Cones2])
def test_a_file_acts_as_what_was_trained(kind, make, tmp_path):
    """The trained model's own forward pass, through peft, hooks or a tuned encoder, and the stock one with the file."""
    learner = stirred(learner_of(kind, make, "rex", tmp_path))
    concept, backbone = learner.concept(), make()
    generator = kind.draws(backbone, {"rex": concept}, SAMPLING)
    batch = [generator.prepare(Request("a photo of <rex>", 0))]
    noised = backbone.corrupt(torch.randn(1, 4, 8, 8), [torch.Generator().manual_seed(0)])
    with torch.no_grad(), learner.acting():
        expected = learner.backbone.denoise(noised, learner.subject_text([3]))
    with torch.no_grad(), generator.acting(("rex",)):
        found = backbone.denoise(noised, generator.read(batch))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_residual_is_the_mean_difference_at_the_noun_over_the_templates(make, tmp_path):
    learner = stirred(learner_of(Cones2, make, "rex", tmp_path))
    stock = learner.backbone.encode_text(learner.prompts).prompt_embeds
    own, learner.backbone.text_encoders = learner.backbone.text_encoders, tuple(learner.tuned)
    tuned = learner.backbone.encode_text(learner.prompts).prompt_embeds
    learner.backbone.text_encoders = own
    nouns = [span.stop - 1 for span in learner.spans]
    expected = sum(tuned[row, at] - stock[row, at] for row, at in enumerate(nouns)) / len(nouns)
    torch.testing.assert_close(learner.learnt()["residual.0"][0], expected)
    others = [
        (tuned[row, at] - stock[row, at]).square().mean()
        for row in range(len(nouns))
        for at in range(stock.shape[1])
        if at != nouns[row]
    ]
    torch.testing.assert_close(learner.moved().detach(), torch.stack(others).mean())
    generator = Cones2.draws(make(), {"rex": learner.concept()}, SAMPLING)
    batch = [generator.prepare(Request("a <rex> in the snow", 0))]
    plain = generator.backbone.encode_text(["a dog in the snow"]).prompt_embeds
    moved = generator.read(batch).prompt_embeds - plain
    torch.testing.assert_close(moved[0, 2], expected, rtol=1e-4, atol=1e-6)
    assert not moved[0, :2].any() and not moved[0, 3:].any()


def test_textual_inversion_replaces_the_noun_and_keeps_the_article(make, tmp_path):
    learner = stirred(learner_of(TextualInversion, make, "rex", tmp_path))
    table = learner.backbone.text_encoders[0].get_input_embeddings().weight
    a, dog = learner.backbone.tokenizers[0]("a dog", add_special_tokens=False).input_ids
    tokens = learner.learnt()["token.0"]
    assert tokens.shape == (2, table.shape[1]) and (tokens[0] == table[a]).all() and (tokens[1] != table[dog]).any()
    # Prompts are read as if the noun's own row of the table were S*.
    generator = TextualInversion.draws(make(), {"rex": learner.concept()}, SAMPLING)
    found = generator.read([generator.prepare(Request("a photo of <rex> at night", 0))]).prompt_embeds
    changed = make()
    for index, encoder in enumerate(changed.text_encoders):
        encoder.get_input_embeddings().weight[dog] = learner.learnt()[f"token.{index}"][1].detach()
    torch.testing.assert_close(found, changed.encode_text(["a photo of a dog at night"]).prompt_embeds)


def test_a_constrained_merge_solves_the_papers_problem():
    """The optimality conditions, written as one linear system: W R + Y C = W_0 R and W C^T = V, R = C_reg^T C_reg."""
    generator = torch.Generator().manual_seed(0)
    weight, regular, text, values = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 6), (20, 6), (2, 6), (3, 2))
    )
    gram = regular.T @ regular
    system = torch.cat([torch.cat([gram, text], 0), torch.cat([text.T, torch.zeros(2, 2)], 0)], 1)
    solved = torch.linalg.solve(system.T, torch.cat([weight @ gram, values], 1).T).T[:, :6]
    found = weight + constrained_merge(weight, regular, text, values)
    torch.testing.assert_close(found, solved, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found @ text.T, values, rtol=1e-5, atol=1e-5)


def test_merged_weights_make_of_each_concepts_text_what_its_own_weights_make(make, tmp_path):
    generator = CustomDiffusionGenerator(make(), learnt(CustomDiffusion, make, tmp_path), SAMPLING)
    merged = generator.combined(("mittens", "rex"))
    for name in NOUNS:
        one = generator.prepare(Request(f"a photo of <{name}>", 0))
        states = generator.read([one]).prompt_embeds[0, one.positions[0]]
        for layer, change in generator.concepts[name].changes.items():
            expected = states @ change.T
            # Rows of seven templates are met in the least squares.
            assert (states @ merged[layer].T - expected).norm() < 0.35 * expected.norm(), layer
    added = CustomDiffusionGenerator(make(), generator.concepts, SAMPLING, merge="sum").combined(("mittens", "rex"))
    layer = next(iter(added))
    torch.testing.assert_close(added[layer], sum(one.changes[layer] for one in generator.concepts.values()))


def test_gradient_fusion_is_the_least_squares_solution():
    generator = torch.Generator().manual_seed(0)
    changes = [torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    inputs = [torch.randn(5, 9, generator=generator, dtype=torch.float64) for _ in range(2)]
    whole, aims = torch.cat(inputs, 1), torch.cat([c @ x for c, x in zip(changes, inputs, strict=True)], 1)
    # A ridge is five more inputs, on each of which nothing is asked to change.
    ridge = (0.01 * whole.square().sum() / 5).sqrt() * torch.eye(5, dtype=torch.float64)
    for r, more in ((0.0, torch.zeros(5, 0)), (0.01, ridge)):
        asked = torch.cat([aims, torch.zeros(3, more.shape[1])], 1)
        solved = torch.linalg.lstsq(torch.cat([whole, more], 1).T, asked.T).solution.T
        found = fused(changes, [one @ one.T for one in inputs], r)
        torch.testing.assert_close(found, solved.float(), rtol=1e-5, atol=1e-5)
    # With nothing seen of the second concept, the first keeps its own change.
    nothing = torch.zeros(5, 5, dtype=torch.float64)
    alone = fused(changes, [inputs[0] @ inputs[0].T, nothing], 0.0)
    torch.testing.assert_close(alone, changes[0].float(), rtol=1e-5, atol=1e-5)


def test_fused_weights_keep_a_concept_on_its_inputs_and_the_stock_model_on_all_others():
    """Inputs of two concepts span four of eight directions, the fourth of them hardly: no change may explode there."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    changes = [torch.randn(3, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    inputs = [basis[:, :2] @ torch.randn(2, 6, generator=generator, dtype=torch.float64), basis[:, 2:4].clone()]
    inputs[1][:, 1] *= 1e-4
    grams = [one @ one.T for one in inputs]
    found = fused(changes, grams, 1e-6).double()
    for change, at in ((changes[0], slice(0, 2)), (changes[1], slice(2, 3))):
        torch.testing.assert_close(found @ basis[:, at], change @ basis[:, at], rtol=1e-4, atol=1e-4)
    assert (found @ basis[:, 4:]).abs().max() < 1e-6
    assert (found @ basis[:, 3]).norm() < 0.1 * (changes[1] @ basis[:, 3]).norm()
    assert found.norm() < sum(change.norm() for change in changes)


def test_fusion_reads_the_tokens_of_concepts_with_the_fused_text_encoder(make, tmp_path):
    generator = MixOfShow.draws(make(), learnt(MixOfShow, make, tmp_path), SAMPLING)
    found, backbone = generator.combined(("mittens", "rex")), generator.backbone
    changes = {name: concept.changes for name, concept in generator.concepts.items()}
    assert set(found) == set(changes["rex"])
    # One more solution of the same equations, from the states of each concept's own tokens.
    text = {layer: change for layer, change in found.items() if layer.startswith("text_encoder.")}
    for layer, change in text.items():
        layer_named(backbone, layer).weight.data += change
    states = {}
    for name, noun in NOUNS.items():
        batch = [generator.prepare(Request(one.replace("{}", f"a <{name}>"), 0)) for one in TEMPLATES]
        embeds = generator.read(batch).prompt_embeds
        spans = [concept_span(backbone.tokenizers[0], one, noun, backbone.as_read)[1] for one in TEMPLATES]
        states[name] = torch.cat([embeds[row, span] for row, span in enumerate(spans)]).double()
    for layer in (one for one in found if one.endswith(("attn2.to_k", "attn2.to_v"))):
        total = sum(one.T @ one for one in states.values())
        aimed = sum(changes[name][layer].double() @ one.T @ one for name, one in states.items())
        ridged = total + generator.ridge * total.trace() / len(total) * torch.eye(len(total))
        torch.testing.assert_close(found[layer], (aimed @ ridged.inverse()).float(), rtol=1e-3, atol=1e-5)


def test_fusion_leaves_the_padding_of_prompts_out(make, tmp_path):
    generator = MixOfShow.draws(make(), learnt(MixOfShow, make, tmp_path), SAMPLING)
    layer = next(name for name in generator.concepts["rex"].changes if name.startswith("text_encoder.0."))
    seen, tokenizer = [], generator.backbone.tokenizers[0]
    batch = [generator.prepare(Request(one.replace("{}", "a <rex>"), 0)) for one in TEMPLATES]
    with generator.acting(("rex",)):
        hook = layer_named(generator.backbone, layer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        generator.read(batch)
        hook.remove()
    rows = [states[: len(tokenizer(one.plain).input_ids)] for states, one in zip(seen[0], batch, strict=True)]
    expected = sum(one.double().T @ one.double() for one in rows)
    torch.testing.assert_close(generator._grams("rex")[layer], expected)


def test_stacked_loras_are_added_with_their_scale(make, tmp_path):
    generator = DreamBoothLoRAGenerator(make(), learnt(DreamBoothLoRA, make, tmp_path), SAMPLING, scale=0.5)
    both, rex = generator.changes(["rex", "mittens"]), generator.changes(["rex"])
    for layer, change in both.items():
        expected = [one.part("up")[layer] @ one.part("down")[layer] for one in generator.concepts.values()]
        torch.testing.assert_close(change, 0.5 * (expected[0] + expected[1]))
        torch.testing.assert_close(rex[layer], expected[0])
    assert {layer.rpartition(".to_")[2] for layer in both} == {"q", "k", "v", "out.0"}


def test_omg_gives_each_cell_to_the_noun_with_most_attention():
    attention = torch.tensor([[[[0.0, 1.0, 4.0, 3.0]], [[2.0, 2.5, 1.0, 2.4]]]])  # (1, 2, 1, 4)
    # Ranged: 0 .25 1 .75 and .67 1 0 .93.
    assert masks_of(attention, 0.5).tolist() == [[[[0, 0, 1, 0]], [[1, 1, 0, 1]]]]
    assert masks_of(attention, 0.8).tolist() == [[[[0, 0, 1, 0]], [[0, 1, 0, 1]]]]


def test_omg_takes_each_concepts_noise_inside_its_mask(make, tmp_path):
    backbone = make()
    generator = OMGGenerator(backbone, learnt(DreamBoothLoRA, make, tmp_path), SAMPLING)
    batch = [generator.prepare(Request(TWO, 0))]
    plain = backbone.encode_text([batch[0].plain])
    noised = backbone.corrupt(torch.randn(1, 4, 8, 8), [torch.Generator().manual_seed(0)])
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, :, :3], masks[1, :, :, 5:] = 1, 1
    with torch.no_grad():
        expected = backbone.denoise(noised, plain)
        concepts = []
        for name, mask in zip(NOUNS, masks, strict=True):
            text = generator.read(batch, (name,))
            with generator.acting((name,)):
                expected = torch.where(mask[:, None] > 0, backbone.denoise(noised, text), expected)
            weights = {
                layer: layer_named(backbone, layer).weight + change
                for layer, change in generator.changes([name]).items()
            }
            concepts.append((mask, text, weights))
        with generator.blended(concepts):
            found = backbone.denoiser(
                noised.noisy_latents,
                noised.timesteps,
                encoder_hidden_states=plain.prompt_embeds,
                added_cond_kwargs=backbone.added_conditions(plain, (8, 8)),
                return_dict=False,
            )[0]
    torch.testing.assert_close(found, expected)
    assert "forward" not in vars(backbone.denoiser)


def test_omg_draws_plain_prompts_as_the_stock_pipeline(make, tmp_path):
    generator = OMGGenerator(make(), learnt(DreamBoothLoRA, make, tmp_path), SAMPLING)
    stock = np.asarray(make().draw(["a dog left of a cat"], [0], generator.sampling)[0])
    images = drawn(generator, "a dog left of a cat", TWO)
    assert (images[0] == stock).all() and (images[1] != stock).any()


def test_a_file_of_another_method_is_refused_in_a_sentence(make, tmp_path):
    concepts = learnt(TextualInversion, make, tmp_path)
    with pytest.raises(RefusedFileError, match=r"learnt by textual_inversion, not by custom_diffusion; add method="):
        CustomDiffusionGenerator(make(), concepts, SAMPLING)
    with pytest.raises(RefusedFileError, match="was learnt by textual_inversion, but latexblend is to draw it"):
        refuse_other_method(str(tmp_path / "rex.safetensors"), "latexblend")
    bank = {"class_noun": "dog", "backbone_hash": "f00"}
    ConceptBank({"k.a": torch.ones(2, 3), "v.a": torch.ones(2, 3)}, bank).save(tmp_path / "bank.safetensors")
    with pytest.raises(RefusedFileError, match="was learnt by latexblend, but cones2 is to draw it; add method="):
        refuse_other_method(str(tmp_path / "bank.safetensors"), "cones2")
    moved = RivalConcept(concepts["rex"].tensors, {**concepts["rex"].metadata, "backbone_hash": "f00"})
    with pytest.raises(RefusedFileError, match="learnt with the backbone"):
        TextualInversion.draws(make(), {"rex": moved}, SAMPLING)
    with pytest.raises(ValueError, match="knows no strength of a mention; write <rex>"):
        TextualInversion.draws(make(), concepts, SAMPLING).check([Request("a <rex:0.5>", 0)])


def test_masked_cells_do_not_count(make, tmp_path, root):
    """The loss of a photo is the mean square over the cells of its mask, against the formula written out."""
    learner = learner_of(TextualInversion, make, "rex", tmp_path, prior_loss_weight=0.0)
    stepped(learner, root)
    learner.instance = (learner.instance[0], torch.zeros_like(learner.instance[1]))
    learner.instance[1][:, :, 2:4, 1:5] = 1
    generator = torch.Generator().manual_seed(5)
    losses = learner._losses(torch.tensor([1]), [generator])
    again = torch.Generator().manual_seed(5)
    template = int(torch.randint(7, (1,), generator=again))
    latents = learner.instance[0][1:2]
    noise = torch.randn(latents.shape[1:], generator=again)[None]
    at = torch.randint(0, 1000, (1,), generator=again)
    level = learner.backbone.noise_scheduler.alphas_cumprod[at].view(-1, 1, 1, 1)
    noisy = level.sqrt() * latents + (1 - level).sqrt() * noise
    with torch.no_grad():
        text = learner.backbone.encode_text([learner.prompts[template]])
        added = learner.backbone.added_conditions(text, (8, 8))
        found = learner.backbone.denoiser(noisy, at, text.prompt_embeds, added_cond_kwargs=added).sample
    expected = F.mse_loss(found[:, :, 2:4, 1:5], noise[:, :, 2:4, 1:5])
    torch.testing.assert_close(losses["instance_loss"][0].detach(), expected, rtol=1e-4, atol=1e-5)


def test_the_class_images_count_with_their_weight(make, tmp_path):
    learner = learner_of(CustomDiffusion, make, "rex", tmp_path, prior_loss_weight=0.25)
    losses = {"instance_loss": torch.tensor([1.0, 3.0]), "prior_loss": torch.tensor([4.0, 8.0])}
    loss, logged = learner.reduce(losses)
    assert loss == 2.0 + 0.25 * 6.0 and logged == {"loss": loss, "instance_loss": torch.tensor(2.0)}
