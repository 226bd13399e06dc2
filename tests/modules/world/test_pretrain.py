import numpy as np
import open_clip
import pytest
import timm
import torch
from torch.nn import functional as F

from src.data.order import Draw
from src.data.world.clips import FAMILY_FRAMES, FramePairs, FramePairsData, family_photos
from src.data.world.datamodules import ATTRIBUTES, AttributeData, CaptionPairsData, attribute_words, to_pixel_values
from src.data.world.families import MEMBERS, family
from src.data.world.render import render
from src.data.world.scenes import FRAMES, attribute_scene, family_scene, frame_scene
from src.data.world.tokenizers import write_clip_tokenizer
from src.data.world.vocabulary import is_held_out
from src.modules.world.contrastive import ContrastivePretraining
from src.modules.world.probe import ProbeTraining, soften
from src.modules.world.self_distillation import Contrast, SelfDistillation, Views, random_view
from tests.pretrainings import check_resume, fit, module

RESNET = {"architecture": "resnet10t", "model_args": {"channels": [8, 8, 16, 16], "stem_width": 8}}
VISION = {
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    "vit": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
}


def contrastive(folder, vision="resnet"):
    text = {"width": 16, "heads": 2, "layers": 1}
    return module(ContrastivePretraining(str(folder / "clip"), VISION[vision], text, embed_dim=8), None)


def distillation(folder, contrast_weight=1.0, **options):
    sizes = {"head_dim": 16, "prototypes": 8, "views": Views(size=32)}
    contrast = Contrast(contrast_weight)
    return module(SelfDistillation(str(folder / "dino"), **RESNET, **sizes, contrast=contrast, **options), None)


def pairs(folder):
    return CaptionPairsData(str(folder / "cache"), batch_size=4, num_train=8, num_val=4)


def frames(folder):
    return FramePairsData(str(folder / "cache"), batch_size=1, num_train=2, num_val=3)


@pytest.mark.parametrize("vision", ["resnet", "vit"])
def test_an_exported_clip_loads_with_open_clip_and_embeds_alike(tmp_path, vision):
    trained = contrastive(tmp_path, vision)
    trainer, learner = fit(trained, pairs(tmp_path)), trained.learner
    assert 0 <= float(trainer.callback_metrics["val/recall_at_1"]) <= 1
    folder = trained.export()["image and text encoder"]
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a photo of a red dog"])
    assert torch.equal(tokens, learner._tokens(["a photo of a red dog"]))
    pixel_values = torch.rand(2, 3, 64, 64) * 2 - 1
    learner.clip.half().float().eval(), model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(pixel_values), learner.clip.encode_image(pixel_values))
        torch.testing.assert_close(model.encode_text(tokens), learner.clip.encode_text(tokens))


def test_a_start_from_weights_with_fewer_words_keeps_each_word_s_own_row(tmp_path):
    write_clip_tokenizer(tmp_path / "first" / "clip")
    first = contrastive(tmp_path / "first")
    first.export()
    text = {"width": 16, "heads": 2, "layers": 1}
    second = ContrastivePretraining(
        str(tmp_path / "second"),
        VISION["resnet"],
        text,
        embed_dim=8,
        init_from=str(tmp_path / "first" / "clip"),
        seed=3,
    )
    assert "woodcut</w>" not in first.learner.tokenizer.get_vocab()
    assert "woodcut</w>" in second.tokenizer.get_vocab()
    first.learner.clip.half().float().eval(), second.clip.eval()
    with torch.no_grad():
        images = torch.rand(2, 3, 64, 64)
        assert torch.equal(first.learner.clip.encode_image(images), second.clip.encode_image(images))
        old, new = (one.clip.encode_text(one._tokens(["a red dog"])) for one in (first.learner, second))
        torch.testing.assert_close(old, new)


def test_a_second_start_keeps_the_vocabulary(tmp_path):
    contrastive(tmp_path)
    before = (tmp_path / "clip" / "vocab.json").stat().st_mtime_ns
    contrastive(tmp_path)
    assert (tmp_path / "clip" / "vocab.json").stat().st_mtime_ns == before


def test_an_exported_dino_loads_with_timm_and_embeds_alike(tmp_path):
    trained = distillation(tmp_path)
    trainer = fit(trained, frames(tmp_path))
    for name in ("reidentification", "hard_reidentification"):
        assert 0 <= float(trainer.callback_metrics[f"val/{name}"]) <= 1
    assert float(trainer.callback_metrics["val/cosine_swapped"]) <= 1
    folder = trained.export()["self-supervised encoder"]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    pixel_values = torch.rand(2, 3, 64, 64) * 2 - 1
    teacher = trained.learner.teacher.backbone.half().float().eval()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixel_values), teacher(pixel_values))


def test_a_training_can_start_from_an_exported_dino(tmp_path):
    first = distillation(tmp_path, seed=1)
    folder = first.export()["self-supervised encoder"]
    again = distillation(tmp_path, init_from=folder).learner
    for name, weight in first.learner.student.backbone.state_dict().items():
        expected = weight.half().float() if weight.is_floating_point() else weight
        for encoder in (again.student, again.teacher):
            assert torch.equal(encoder.backbone.state_dict()[name], expected), name


def test_the_teacher_follows_the_student_without_gradients(tmp_path):
    trained = distillation(tmp_path)
    teacher = trained.learner.teacher
    start = {name: weight.clone() for name, weight in teacher.named_parameters()}
    fit(trained, frames(tmp_path))
    moved = [name for name, weight in teacher.named_parameters() if not torch.equal(weight, start[name])]
    assert moved
    assert all(weight.grad is None for weight in teacher.parameters())


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_loss_is_the_distillation_and_the_weighted_contrast(tmp_path, weight):
    learner = distillation(tmp_path, weight).learner
    learner.prepare(None, torch.device("cpu"), num_steps=2)
    frame = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {"first": frame, "second": frame.flip(-1), "step": torch.tensor(0)}
    loss, logged = learner.reduce(learner.losses(batch, learner.generators(batch, 0, 1)))
    assert logged["contrast"] > 0
    torch.testing.assert_close(loss, logged["distillation"] + weight * logged["contrast"])


def test_the_student_predicts_the_teachers_answer_to_the_other_view(tmp_path):
    """Cross-entropy of ``softmax(t / 0.04)`` and ``log softmax(s / 0.1)`` over both pairs of different views."""
    learner = distillation(tmp_path).learner.eval()
    learner.prepare(None, torch.device("cpu"), num_steps=2)
    with torch.no_grad():
        for parameter in learner.student.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    frame = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {"first": frame, "second": frame.flip(-1), "step": torch.tensor(0)}
    views = learner._cut(batch, learner.generators(batch, 0, 1)[0])
    with torch.no_grad():
        found = learner.losses(batch, learner.generators(batch, 0, 1))["distillation"]
        answers = (learner.teacher(views) / 0.04).softmax(-1).chunk(2)
        guesses = (learner.student(views) / 0.1).log_softmax(-1).chunk(2)
    pairs = [answers[0] * guesses[1], answers[1] * guesses[0]]
    torch.testing.assert_close(found, -torch.stack(pairs).sum(-1).mean(), rtol=1e-4, atol=1e-5)


def test_the_contrast_asks_for_the_partner_and_ignores_length_and_order(tmp_path):
    contrast = distillation(tmp_path).learner.contrast
    first, second = (torch.randn(6, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert contrast(first, first) < contrast(first, second)
    assert contrast(first, first) < contrast(first, first.roll(1, 0))
    torch.testing.assert_close(contrast(first, second), contrast(3 * second, first))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(contrast(first, second), contrast(first[order], second[order]))


def test_the_contrast_draws_partners_together_and_pushes_others_apart(tmp_path):
    contrast = distillation(tmp_path).learner.contrast
    first, second = (torch.randn(6, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    first.requires_grad_(True)
    contrast(first, second).backward()
    with torch.no_grad():
        stepped = first - 0.1 * first.grad
        before, after = (F.normalize(rows, dim=-1) @ F.normalize(second, dim=-1).T for rows in (first, stepped))
    change, own = after - before, torch.eye(6, dtype=torch.bool)
    assert (change[own] > 0).all()
    assert change[~own].mean() < 0


@pytest.mark.parametrize(("build", "data"), [(contrastive, pairs), (distillation, frames)])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, build, data):
    check_resume(build, data, tmp_path)


def test_the_probe_learns_and_exports(tmp_path):
    trained = module(ProbeTraining(str(tmp_path / "probe"), **RESNET), None)
    fit(trained, AttributeData(str(tmp_path / "cache"), batch_size=4, num_train=8, num_val=4))
    model = timm.create_model(f"local-dir:{trained.export()['probe']}", pretrained=True)
    assert model.num_classes == sum(map(len, ATTRIBUTES.values()))
    pixel_values = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = trained.learner.model.half().float().eval()(pixel_values)
        torch.testing.assert_close(model.eval()(pixel_values), expected)


def test_frames_of_a_clip_show_one_training_individual():
    clips = [[frame_scene(clip * FRAMES + frame) for frame in range(FRAMES)] for clip in range(20)]
    for clip in clips:
        looks = {scene.objects[0].look for scene in clip}
        assert len(looks) == 1
        assert not is_held_out(looks.pop())
        assert len({scene.objects[0].box for scene in clip}) == FRAMES


def test_clips_of_a_family_follow_each_other():
    shown = [frame_scene((8 + member) * FRAMES).objects[0].look for member in range(len(MEMBERS))]
    assert tuple(shown) == family(1)


@pytest.mark.parametrize("same_frame", [False, True])
def test_a_pair_is_two_frames_of_one_clip_or_one_frame_twice(same_frame):
    images = np.arange(3 * FAMILY_FRAMES, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    batch = FramePairs(images, same_frame).__getitems__([Draw(index, 7, index) for index in (2, 0)])
    first, second = (((batch[key][:, 0, 0, 0] + 1) * 127.5).round().long() for key in ("first", "second"))
    # All clips of each family are in the batch, side by side.
    whole = torch.cat([torch.arange(16, 24), torch.arange(8)])
    assert torch.equal(first // FRAMES, whole)
    assert torch.equal(second // FRAMES, whole)
    assert (first == second).all() if same_frame else (first != second).all()


def test_views_depend_on_the_generator_alone_and_keep_hue():
    grey = torch.rand(4, 1, 64, 64).expand(4, 3, 64, 64) * 2 - 1
    first, again = (random_view(grey, 0.5, 48, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (4, 3, 48, 48)
    torch.testing.assert_close(first[:, 0], first[:, 2])


def test_softening_keeps_the_mean():
    pixel_values = torch.rand(2, 3, 8, 8)
    softer = soften(pixel_values, torch.Generator().manual_seed(0))
    assert softer.std() < pixel_values.std()
    torch.testing.assert_close(soften(torch.ones(1, 3, 8, 8), torch.Generator()), torch.ones(1, 3, 8, 8))


def test_attribute_words_are_those_of_the_caption():
    scene = attribute_scene(5)
    words = attribute_words(scene)
    assert f"{words['color']} {words['pattern']} {words['object']}" in scene.caption


def test_photos_are_ordered_by_family():
    photos = family_photos(range(2), 1)
    assert photos.shape == (2, 9, 3, 64, 64)
    expected = to_pixel_values(np.asarray(render(family_scene(1, 8)))[None])[0]
    np.testing.assert_array_equal(photos[1, 8], expected)
