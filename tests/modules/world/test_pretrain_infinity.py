"""The world's image tokenizer and scale-wise model: a resumed training is the same, and what is exported draws."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import T5TokenizerFast

from src.data.world.datamodules import WorldData
from src.data.world.linear_code import LinearCode
from src.data.world.scenes import full_caption, sample_scene
from src.data.world.tokenizers import words, write_t5_tokenizer
from src.modules.next_scale.infinity.pipeline import InfinityPipeline
from src.modules.training.learner import LearnerModule
from src.modules.world.bsq_tokenizer import BSQTokenizerPretraining, TokenizerSize
from src.modules.world.scale_wise import ScaleWisePretraining, TransformerSize
from tests.pretrainings import check_resume, fit, module

SCHEDULE = [[1, 1], [2, 2], [3, 3], [4, 4], [6, 6], [8, 8]]


def data(folder: Path) -> WorldData:
    return WorldData(str(folder / "cache"), 4, 32, 4, code_path=str(folder / "code.safetensors"), latent_channels=8)


def tokenizer(folder: Path, **changes: object) -> LearnerModule:
    size, code = TokenizerSize(8, 8, [1, 1, 1, 1], norm_num_groups=4), str(folder / "code.safetensors")
    options = {"teacher_steps": 3, **changes}
    return module(BSQTokenizerPretraining(str(folder / "infinity"), code, SCHEDULE, size, **options))


def scale_wise(folder: Path, **changes: object) -> LearnerModule:
    if not (folder / "infinity" / "vae").exists():
        tokenizer(folder).export()
    size = TransformerSize(depth=2, width=32, num_heads=2)
    return module(ScaleWisePretraining(str(folder / "infinity"), SCHEDULE, size, 16, 1, **changes))


@pytest.mark.parametrize("build", [tokenizer, scale_wise])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, build) -> None:
    check_resume(build, data, tmp_path)


def test_the_two_exports_are_one_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="world/infinity_tokenizer"):
        ScaleWisePretraining(str(tmp_path / "infinity"), SCHEDULE)
    eyes = tokenizer(tmp_path)
    fit(eyes, data(tmp_path))
    assert set(eyes.trainer.callback_metrics) >= {"val/psnr", "val/psnr_scale_3", "train/lesson"}
    eyes.export()
    painter = scale_wise(tmp_path)
    fit(painter, data(tmp_path))
    assert painter.trainer.callback_metrics["val/loss"] > 0
    assert not any(parameter.requires_grad for parameter in painter.learner.vae.parameters())
    average = [parameter.clone() for parameter in painter.ema.shadow_params]
    painter.export()
    pipeline = InfinityPipeline.from_pretrained(tmp_path / "infinity")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red dog").images[0].size == (64, 64)
    assert torch.allclose(next(pipeline.transformer.parameters()), average[0], atol=1e-3)
    assert torch.equal(pipeline.vae.encoder.conv_in.weight, eyes.learner.tokenizer.encoder.conv_in.weight)


def test_an_exported_image_tokenizer_learns_on(tmp_path: Path) -> None:
    first = tokenizer(tmp_path)
    first.export()
    second = tokenizer(tmp_path, init_from=str(tmp_path / "infinity"), teacher_steps=0, seed=9)
    ours, theirs = second.learner.tokenizer.state_dict(), first.learner.tokenizer.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    before = ours["encoder.conv_in.weight"].clone()
    fit(second, data(tmp_path), limit_val_batches=0)
    assert not torch.equal(second.learner.tokenizer.encoder.conv_in.weight, before)


def test_training_goes_on_from_an_exported_folder(tmp_path: Path) -> None:
    first = scale_wise(tmp_path)
    first.export()
    second = scale_wise(tmp_path, init_from=str(tmp_path / "infinity"), seed=9)
    ours, theirs = second.learner.transformer.state_dict(), first.learner.transformer.float().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def scenes(folder: Path) -> dict[str, object]:
    source = data(folder)
    source.prepare_data()
    source.setup("fit")
    return next(iter(source.val_dataloader()))


def test_the_teacher_is_a_rotation_of_the_linear_code(tmp_path: Path) -> None:
    learner, batch = tokenizer(tmp_path).learner, scenes(tmp_path)
    learner.prepare(None, torch.device("cpu"))
    taught = learner.teacher(batch["pixel_values"])
    assert taught.shape == (4, 8, 8, 8)
    plain = torch.from_numpy(LinearCode.load(tmp_path / "code.safetensors").encode(batch["pixel_values"].numpy()))
    ratio = taught.norm(dim=1) / plain.norm(dim=1)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.7 / 8**0.5), rtol=1e-4, atol=0)


def test_after_the_teacher_the_encoder_is_on_its_own(tmp_path: Path) -> None:
    learner, encoded = tokenizer(tmp_path, teacher_steps=10).learner, torch.randn(4, 8, 8, 8)
    pixel_values = scenes(tmp_path)["pixel_values"]
    learner.prepare(None, torch.device("cpu"))
    first, lesson = learner._taught(encoded, pixel_values, 0, torch.Generator())
    assert torch.equal(first, learner.teacher(pixel_values))
    assert lesson > 0
    later, nothing = learner._taught(encoded, pixel_values, 10, torch.Generator())
    assert torch.equal(later, encoded)
    assert nothing == 0


def losses(learner: ScaleWisePretraining, batch: dict[str, object], **changes: float) -> Tensor:
    arguments = {"caption_dropout": 0.0, "flip_strength": 0.0, **changes}
    with torch.no_grad():
        return learner.bit_errors(batch, **arguments, generator=torch.Generator().manual_seed(0))


def test_captions_and_flips_matter_and_one_table_stands_for_dropped_captions(tmp_path: Path) -> None:
    learner, batch = scale_wise(tmp_path).learner, scenes(tmp_path)
    other = {**batch, "caption": ["a blue cat at night"] * 4}
    for block in learner.transformer.blocks:
        torch.nn.init.normal_(block.cross_attention.proj.weight)
    torch.nn.init.normal_(learner.transformer.head.weight)
    plain = losses(learner, batch)
    assert plain.shape == (4,)
    assert (losses(learner, other) != plain).any()
    assert (losses(learner, batch, flip_strength=0.5) != plain).any()
    text, mask = learner._text(batch["caption"], 1.0, torch.Generator())
    assert torch.equal(text[0], learner.transformer.unconditional[: text.shape[1]])
    assert torch.equal(text[0], text[1])
    assert (mask.sum(1) > 1).all()


def test_every_word_of_the_world_is_one_token(tmp_path: Path) -> None:
    write_t5_tokenizer(tmp_path, 64)
    tokens = T5TokenizerFast.from_pretrained(tmp_path)
    assert all(len(tokens(word).input_ids) == 2 for word in words())
    drawn = [sample_scene(seed) for seed in range(50)]
    captions = [*(scene.caption for scene in drawn), *map(full_caption, drawn)]
    ids = tokens(captions).input_ids
    assert not any(tokens.unk_token_id in each for each in ids)
    assert max(map(len, ids)) <= tokens.model_max_length == 64
    assert [tokens.decode(each, skip_special_tokens=True) for each in ids] == captions
    before = (tmp_path / "tokenizer.json").read_bytes()
    write_t5_tokenizer(tmp_path, 64)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
