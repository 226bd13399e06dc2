"""The world's pretrainings against the definitions of their losses, rates and shares."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from src.modules.next_scale.infinity.training import bit_lesson
from src.modules.training.learner import Learner
from src.modules.world.bsq_tokenizer import BSQTokenizerPretraining, TokenizerSize
from src.modules.world.contrastive import ContrastivePretraining
from src.modules.world.language_model import LanguageModelPretraining, known_tokens
from src.modules.world.scale_wise import ScaleWisePretraining, TransformerSize
from src.modules.world.text_to_image import TextToImagePretraining

SCHEDULE = [[1, 1], [2, 2], [3, 3], [4, 4], [6, 6], [8, 8]]
CAPTIONS = ["a red dog", "a blue cat at night", "a car", "a green bird"]


def text_to_image(folder: Path, **options) -> TextToImagePretraining:
    return TextToImagePretraining(str(folder / "sd"), [32, 32], 8, text_width=32, text_layers=1, **options)


def tokenizer(folder: Path, **options) -> BSQTokenizerPretraining:
    size = TokenizerSize(8, 8, [1, 1, 1, 1], norm_num_groups=4)
    return BSQTokenizerPretraining(str(folder / "infinity"), "", SCHEDULE, size, **options)


def scale_wise(folder: Path, **options) -> ScaleWisePretraining:
    tokenizer(folder).tokenizer.save_pretrained(folder / "infinity" / "vae")
    size = TransformerSize(depth=2, width=32, num_heads=2)
    learner = ScaleWisePretraining(str(folder / "infinity"), SCHEDULE, size, 16, 1, **options)
    nn.init.normal_(learner.transformer.head.weight)
    return learner


def pictures(number: int = 4) -> Tensor:
    return 2 * torch.rand(number, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 1


def test_the_painter_learns_the_velocity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``v = sqrt(a) noise - sqrt(1 - a) x``: a model that knows x finds it in ``x_t``, and has no loss."""
    learner = text_to_image(tmp_path)
    latents = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))

    def velocity(noisy: Tensor, timesteps: Tensor, text: Tensor) -> SimpleNamespace:
        share = learner.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noise = (noisy - share.sqrt() * latents) / (1 - share).sqrt()
        return SimpleNamespace(sample=share.sqrt() * noise - (1 - share).sqrt() * latents)

    monkeypatch.setattr(learner.unet, "forward", velocity)
    batch = {"caption": CAPTIONS, "latents": latents, "step": torch.tensor(0)}
    assert learner.losses(batch, learner.generators(batch, 0, 1)).max() < 1e-4
    assert learner.scheduler.alphas_cumprod[-1] < 1e-6, "the last step shows noise alone"


def test_the_painter_drops_as_many_captions_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, seen = text_to_image(tmp_path, caption_dropout=0.2), list[str]()
    ids = learner._ids
    monkeypatch.setattr(learner, "_ids", lambda captions: seen.extend(captions) or ids(captions))
    monkeypatch.setattr(learner, "_mixed_text", lambda *_: None)
    monkeypatch.setattr(learner, "_errors", lambda *_: None)
    for step in range(100):
        batch = {"caption": CAPTIONS, "latents": None, "step": torch.tensor(step)}
        learner.losses(batch, learner.generators(batch, 0, 1))
    # 400 draws with probability 0.2: 80, and four standard deviations are 32.
    assert 48 <= seen.count("") <= 112


def test_the_painters_validation_is_the_same_for_every_seed_and_its_text_has_a_rate_of_its_own(tmp_path: Path) -> None:
    learners = [text_to_image(tmp_path, seed=seed) for seed in (0, 5)]
    batch = {"caption": CAPTIONS}
    states = [[one.get_state() for one in learner.validation_generators(batch, 3)] for learner in learners]
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))
    parts = {"unet": learners[0].unet, "text_encoder": learners[0].text_encoder}
    for group in learners[0].groups():
        assert [id(one) for one in group["params"]] == [id(one) for one in parts.pop(group["name"]).parameters()]
    assert not parts


def test_a_bit_costs_its_cross_entropy_by_the_weight_of_its_scale(tmp_path: Path) -> None:
    """A scale of ``h w`` tokens has the share ``sqrt(h w)`` of the loss."""
    learner = scale_wise(tmp_path, caption_dropout=0.5, flip_strength=0.5)
    batch = {"pixel_values": pictures(), "caption": CAPTIONS, "step": torch.tensor(0)}
    with torch.no_grad():
        found = learner.validate(batch, learner.validation_generators(batch, 0))
        lesson = bit_lesson(learner.vae.encode(batch["pixel_values"]), learner.schedule)
        text, mask = learner._text(CAPTIONS, 0.0, torch.Generator())
        logits = learner.transformer(lesson.tokens, learner.transformer.condition(text, mask), learner.schedule)
    of_zero, of_one = logits.unflatten(-1, (-1, 2)).unbind(-1)
    costs = binary_cross_entropy_with_logits(of_one - of_zero, lesson.bits.float(), reduction="none").mean(-1)
    scales = costs.split([rows * columns for rows, columns in SCHEDULE], dim=1)
    shares = torch.tensor([math.sqrt(rows * columns) for rows, columns in SCHEDULE])
    expected = sum(share * each.mean(1) for share, each in zip(shares, scales, strict=True)) / shares.sum()
    assert torch.allclose(found, expected, rtol=1e-4)


def test_embeddings_and_gains_of_the_scale_wise_model_do_not_decay(tmp_path: Path) -> None:
    learner = scale_wise(tmp_path)
    decays = {id(one): "weight_decay" not in group for group in learner.groups() for one in group["params"]}
    matrices = {id(one.weight) for one in learner.modules() if isinstance(one, nn.Linear)}
    trained = [one for part in (learner.transformer, learner.text_encoder) for one in part.parameters()]
    assert {id(one) for one in trained} == set(decays)
    assert all(decays[id(one)] == (id(one) in matrices) for one in trained)


def contrastive(folder: Path, **options) -> ContrastivePretraining:
    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"width": 16, "heads": 2, "layers": 1}
    return ContrastivePretraining(str(folder / "clip"), vision, text, embed_dim=8, **options)


def test_as_many_images_have_their_full_caption_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, seen = contrastive(tmp_path, full_caption_share=0.2), list[str]()
    tokens = learner._tokens
    monkeypatch.setattr(learner, "_tokens", lambda captions: seen.extend(captions) or tokens(captions))
    captions = {"caption": ["a dog"] * 8, "full_caption": ["a red dog on the grass"] * 8}
    with torch.no_grad():
        for step in range(40):
            batch = {"pixel_values": pictures(8), **captions, "step": torch.tensor(step)}
            learner.losses(batch, learner.generators(batch, 0, 1))
    # 320 draws with probability 0.2: 64, and four standard deviations are 29.
    assert 35 <= seen.count("a red dog on the grass") <= 93


def test_the_temperature_of_clip_stays_in_its_published_range(tmp_path: Path) -> None:
    learner = contrastive(tmp_path)
    for given, kept in ((10.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        learner.clip.logit_scale.data.fill_(given)
        learner.after_step()
        assert learner.clip.logit_scale.item() == pytest.approx(kept)


def test_the_language_model_predicts_the_next_token_of_each_text(tmp_path: Path) -> None:
    learner = LanguageModelPretraining(str(tmp_path / "llm"), 32, 64, num_layers=1, num_heads=2)
    words = learner.tokenizer
    ids = torch.tensor([[words.bos_token_id, 5, 6, 7, words.eos_token_id, words.bos_token_id, 8, words.pad_token_id]])
    knowing = 50.0 * one_hot(ids.roll(-1, 1), len(words)).float()
    found = learner.token_losses(knowing, ids)
    # 5, 6, 7, the end and 8 are predicted; a first token and padding are not.
    assert found.shape == (5,) and found.max() < 1e-4
    known = [SimpleNamespace(known=[(4, 9)])]
    assert known_tokens(known[0], [(0, 4), (4, 7), (7, 9), (9, 12)]) == [1, 2]


def test_the_image_tokenizer_weighs_its_losses_and_stops_early_as_often_as_asked_for(tmp_path: Path) -> None:
    learner: Learner = tokenizer(tmp_path, commitment_weight=0.25, early_share=0.3)
    named = {"image_loss": torch.tensor([1.0, 3.0]), "commitment": torch.tensor(4.0), "lesson": torch.tensor(0.5)}
    assert learner.reduce(named)[0].item() == 2 + 0.25 * 4 + 0.5
    last = learner._last_scales(4000, torch.Generator().manual_seed(0))
    # Of the images that stop early, each scale is the last of a sixth.
    shares = (last[:, None] == torch.arange(6)).float().mean(0)
    assert shares.tolist() == pytest.approx([0.05] * 5 + [0.75], abs=0.02)
