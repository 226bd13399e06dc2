"""Several subjects learnt together: whose turn it is, what a file holds of each, and MuDI's mixtures and noise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.combination import CombinationData
from src.data.request import Request
from src.data.schema import RefusedFileError
from src.data.seg_mix import cut_outs, mixed
from src.data.world.export import SUBJECTS as EXPORTED
from src.data.world.render import render
from src.data.world.scenes import subject_scene
from src.eval.concepts import ConceptSource, bank_source
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.flows import Subject
from src.modules.rivals.concept import RivalConcept, embedded
from src.modules.rivals.custom_diffusion import JointCustomDiffusion, JointCustomDiffusionGenerator
from src.modules.rivals.joint import JointLearner
from src.modules.rivals.mudi import MuDI, MuDIGenerator
from src.modules.training.learner import TrainingRecord
from tests.tiny import tiny_sd

SUBJECTS = Path(__file__).parents[3] / "world" / "subjects"
SAMPLING = {"num_inference_steps": 3, "guidance_scale": 3.0, "resolution": 64}
NOUNS = {"rex": "dog", "mittens": "cat", "pip": "bird"}
JOINT: list[type[JointLearner]] = [JointCustomDiffusion, MuDI]
TWO = "a <rex> left of a <mittens>"


def others(*names: str) -> dict[str, dict[str, str | None]]:
    return {name: {"class_noun": NOUNS[name], "instance_dir": str(SUBJECTS / name)} for name in names}


def learner_of(kind: Any, folder: Path, *names: str, **settings: Any) -> Any:
    first, *more = names
    backbone = UNetBackbone(tiny_sd(folder), "sd")
    subject = Subject(NOUNS[first], first, str(SUBJECTS / first))
    path = str(folder / f"{'_'.join(names)}.safetensors")
    learner = kind(backbone, subject, str(folder), path, others=others(*more), **settings)
    generator = torch.Generator().manual_seed(len(names))
    with torch.no_grad():
        for parameter in learner.averaged_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return learner


def prepared(kind: Any, folder: Path, *names: str, **settings: Any) -> Any:
    learner = learner_of(kind, folder, *names, **settings)
    own = {name: {**one, "class_dir": one["instance_dir"]} for name, one in others(*names).items()}
    first = own.pop(names[0])
    data = CombinationData(**first, others=own, resolution=64, num_class_images=2, num_views=5)  # type: ignore[arg-type]
    learner.prepare(data, torch.device("cpu"))
    return learner


def file_of(kind: Any, folder: Path, *names: str) -> str:
    return learner_of(kind, folder, *names).export(TrainingRecord(1, 0.1, 0.0))["concept bank"]


def batch_of(*index: int) -> dict[str, torch.Tensor]:
    return {"index": torch.tensor(index), "position": torch.arange(len(index)), "step": torch.tensor(0)}


@pytest.mark.parametrize("kind", JOINT)
def test_samples_take_turns_each_with_photos_words_and_class_of_its_own_subject(kind, tmp_path):
    settings = {"mix_share": 0.0} if kind is MuDI else {}
    learner = prepared(kind, tmp_path, "rex", "mittens", **settings)
    rex, mittens = learner.members
    generators, index = [torch.Generator().manual_seed(seed) for seed in range(3)], torch.tensor([6, 7, 8])
    with learner.acting(), torch.no_grad():
        photos, class_photos = learner.photos(index, generators), learner.class_photos(index)
        for row, (member, view) in enumerate(((rex, 3), (mittens, 3), (rex, 4))):
            generator = torch.Generator().manual_seed(row)
            if kind is MuDI:
                torch.rand((), generator=generator)
            text = member.subject_text([int(torch.randint(7, (1,), generator=generator))])
            plain = learner.backbone.encode_text([member.subject.class_noun])
            for found, part, words in ((photos, member.instance, text), (class_photos, member.prior, plain)):
                torch.testing.assert_close(found.latents[row], part[0][view % len(part[0])])
                torch.testing.assert_close(found.mask[row], part[1][view % len(part[1])])
                torch.testing.assert_close(found.text.prompt_embeds[[row]], words.prompt_embeds)
    assert not torch.equal(rex.instance[0], mittens.instance[0]) and not torch.equal(rex.tokens[0], mittens.tokens[0])


def test_words_of_every_subject_are_learnt_where_the_first_ones_are(tmp_path):
    learner = prepared(JointCustomDiffusion, tmp_path, "rex", "mittens")
    learner.losses(batch := batch_of(0, 1), learner.generators(batch, 0, 1))["instance_loss"].sum().backward()
    assert all(member.tokens[0].grad.abs().sum() > 0 for member in learner.members)
    groups = {group["name"]: group["params"] for group in learner.groups()}
    assert [id(one) for one in groups["modifier"]] == [id(member.tokens[0]) for member in learner.members]
    assert not [
        one
        for member in learner_of(MuDI, tmp_path, "rex", "mittens").members
        for one in member.tokens
        if one.requires_grad
    ]


@pytest.mark.parametrize("kind", JOINT)
def test_one_file_stands_for_each_of_its_subjects(kind, tmp_path):
    learner = learner_of(kind, tmp_path, "rex", "mittens")
    path = learner.export(TrainingRecord(1, 0.1, 0.0))["concept bank"]
    generator = kind.draws(UNetBackbone(tiny_sd(tmp_path), "sd"), {"rex": path, "mittens": path}, SAMPLING)
    for member in learner.members:
        concept = generator.concepts[member.subject.concept]
        assert concept.class_noun == member.subject.class_noun
        torch.testing.assert_close(concept.part("token")["0"], member.tokens[0].detach(), rtol=1e-3, atol=1e-3)
    shared = RivalConcept.load(path).changes
    both = generator.changes(["rex", "mittens"])
    assert both.keys() == shared.keys() and all(torch.equal(both[layer], shared[layer]) for layer in shared)
    read = generator.read([generator.prepare(Request(TWO, 0))]).prompt_embeds
    swapped = generator.read([generator.prepare(Request("a <mittens> left of a <rex>", 0))]).prompt_embeds
    assert (read != swapped).any()
    assert bank_source(path, "mittens") == ConceptSource("cat", str(SUBJECTS / "mittens"))
    assert bank_source(path, "rex") == ConceptSource("dog", str(SUBJECTS / "rex"))


def test_the_smallest_file_that_holds_all_subjects_of_a_prompt_draws_it(tmp_path):
    pair, three = (file_of(JointCustomDiffusion, tmp_path, *names) for names in (("rex", "mittens"), tuple(NOUNS)))
    banks = {"rex": [three, pair], "mittens": [three, pair], "pip": three}
    generator = JointCustomDiffusionGenerator(UNetBackbone(tiny_sd(tmp_path), "sd"), banks, SAMPLING)
    small, large = RivalConcept.load(pair), RivalConcept.load(three)
    layer = next(iter(small.changes))
    for names, whole in ((("rex",), small), (("mittens", "rex"), small), (("mittens", "pip"), large)):
        assert torch.equal(generator.changes(names)[layer], whole.changes[layer])
        told = generator.identity(" ".join(f"a <{name}>" for name in names))
        assert {told[f"bank.{name}"] for name in names} == {whole.metadata["sha256"]}
    whole = generator.identity()
    assert set(whole["bank.rex"].split()) == {small.metadata["sha256"], large.metadata["sha256"]}


def test_subjects_that_were_not_learnt_together_are_refused_in_a_sentence(tmp_path):
    rex, mittens = (file_of(MuDI, tmp_path, name) for name in ("rex", "mittens"))
    backbone = UNetBackbone(tiny_sd(tmp_path), "sd")
    generator = MuDIGenerator(backbone, {"rex": rex, "mittens": mittens}, SAMPLING)
    with pytest.raises(ValueError, match=r"mittens and rex were not learnt together, as mudi needs; train them with"):
        generator.check([Request(TWO, 0)])
    generator.check([Request("a <rex>", 0)])
    with pytest.raises(RefusedFileError, match=r"bank\.pip is a file of rex, not of pip"):
        MuDIGenerator(backbone, {"pip": rex}, SAMPLING)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"rex": {"class_noun": "cat", "instance_dir": "here"}},
            r"data\.others\.rex has the name of the first subject",
        ),
        (
            {"tom": {"class_noun": "cat"}},
            r"data\.others\.tom has no instance_dir; add data\.others\.tom\.instance_dir=",
        ),
        (
            {"tom": {"instance_dir": "here"}},
            r"data\.others\.tom has no class_noun; add data\.others\.tom\.class_noun=cat",
        ),
        ({"tom": {"noun": "cat"}}, r"data\.others\.tom has no 'noun'; it takes class_noun, instance_dir, class_dir"),
        ({f"n{i}": {"class_noun": "cat", "instance_dir": "here"} for i in range(8)}, "8 can be learnt together"),
    ],
)
def test_bad_combinations_are_refused_in_a_sentence(given, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        JointCustomDiffusion(
            UNetBackbone(tiny_sd(tmp_path), "sd"), Subject("dog", "rex"), str(tmp_path), str(tmp_path / "a"), given
        )


def test_damaged_subjects_of_a_file_are_refused(tmp_path):
    learner = learner_of(JointCustomDiffusion, tmp_path, "rex", "mittens")
    concept = learner.concept()
    for told in ("[]", "{}", '{"rex": 3}', json.dumps({"rex": {"class_noun": "dog"}}), "x"):
        with pytest.raises(RefusedFileError, match="names, each with the class_noun and the references of a subject"):
            RivalConcept(concept.tensors, {**concept.metadata, "subjects": told}).save(
                str(tmp_path / "bad.safetensors")
            )


def test_mixtures_are_as_frequent_as_asked_and_name_both_subjects(tmp_path):
    learner = prepared(MuDI, tmp_path, "rex", "mittens", "pip", mix_share=0.3)
    mixtures, _ = learner.mixtures
    generators = [torch.Generator().manual_seed(seed) for seed in range(60)]
    found = [learner.photo(7, one).latents for one in generators]
    at = 7 % len(learner.pairs)
    drawn = [float(torch.rand((), generator=torch.Generator().manual_seed(seed))) < 0.3 for seed in range(60)]
    assert [torch.equal(one, mixtures[[at]]) for one in found] == drawn and 5 < sum(drawn) < 30
    assert {frozenset(pair) for pair in learner.pairs} <= {frozenset(p) for p in ((0, 1), (0, 2), (1, 2))}
    # V* of each stands in the place of its own "a", the second and the third of the sentence.
    backbone, (first, second) = learner.backbone, (learner.members[at] for at in learner.pairs[at])
    prompt = f"a photo of a {first.subject.class_noun} and a {second.subject.class_noun}, simple background"
    ids = backbone.token_ids([prompt])
    (a,) = backbone.tokenizers[0]("a", add_special_tokens=False).input_ids
    places = (ids[0][0] == a).nonzero()[:, 0]
    encoders = backbone.text_encoders
    with (
        embedded(encoders, [first.tokens[0]], places[None, 1:2]),
        embedded(encoders, [second.tokens[0]], places[None, 2:3]),
    ):
        expected = backbone.encode_ids(ids).prompt_embeds
    torch.testing.assert_close(learner.mixture(7).text.prompt_embeds, expected)


def test_noise_is_shifted_inside_of_the_subjects_of_a_canvas_and_nowhere_else(tmp_path):
    path, backbone = file_of(MuDI, tmp_path, "rex", "mittens"), UNetBackbone(tiny_sd(tmp_path), "sd")
    banks = {"rex": path, "mittens": path}
    plain, zero, shifted = (
        MuDIGenerator(backbone, banks, SAMPLING, **one) for one in ({}, {"mean_shift": 0.0}, {"mean_shift": 0.5})
    )
    stock = np.asarray(plain.sample([Request(TWO, 3)])[0])
    assert (np.asarray(zero.sample([Request(TWO, 3)])[0]) == stock).all()
    assert (np.asarray(shifted.sample([Request(TWO, 3)])[0]) != stock).any()
    assert (
        np.asarray(shifted.sample([Request("a <rex>", 3)])[0]) == np.asarray(plain.sample([Request("a <rex>", 3)])[0])
    ).all()
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    # The canvas once more, from its parts.
    rng = np.random.default_rng([3, 13])
    cut = [cut_outs(SUBJECTS / name) for name in ("rex", "mittens")]
    pixels, shown = mixed([each[rng.integers(5)] for each in cut], 64, rng, ordered=True)
    latents = backbone.encode_images(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1)
    covered = torch.from_numpy(shown).reshape(8, 8, 8, 8).mean((1, 3))
    torch.testing.assert_close(shifted.noise([shifted.prepare(Request(TWO, 3))]), noise + 0.5 * latents * covered)
    assert (covered == 0).any() and shifted.identity(TWO) != plain.identity(TWO)


def test_masks_of_the_world_are_true():
    """A photo of the scene without its subject differs from the photo where the mask is white, and nowhere else."""
    for name in ("rex", "mittens"):
        noun, index = EXPORTED[name]
        scene = subject_scene(index, 0, noun)
        photo, empty = (np.asarray(render(one)).astype(int) for one in (scene, replace(scene, objects=())))
        shown = np.asarray(Image.open(SUBJECTS / name / "masks" / "00.png")) > 127
        differs = abs(photo - empty).sum(2) > 0
        assert (np.asarray(Image.open(SUBJECTS / name / "00.png")) == photo).all()
        assert not (shown & ~differs).any() and shown.sum() > 0.85 * differs.sum()
        canvas, _ = mixed([cut_outs(SUBJECTS / name)[0]], 64, np.random.default_rng(0))
        assert (canvas[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all() and 0.3 < (canvas == 255).all(2).mean() < 0.98
