"""The world's language model: packed texts do not see each other, a resumed training is the same, the export loads."""

from pathlib import Path

import lightning as L
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from src.data.texts import CorpusData
from src.data.world.quadrants import quadrant_text
from src.data.world.texts import world_text
from src.modules.world.language_model import LanguageModelPretraining, known_tokens, packed

TEXTS = [world_text(seed) for seed in range(40)]


def language_model(folder: Path, **options) -> LanguageModelPretraining:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2}
    return LanguageModelPretraining(str(folder / "llm"), **{**sizes, **options})


def corpus(text=world_text) -> CorpusData:
    return CorpusData(text, batch_size=4, num_train=32, num_val=8)


def fit(module, data: CorpusData, steps: int = 2, halt: int | None = None, resume=None, check: int = 2) -> L.Trainer:
    stop = L.Callback()
    if halt:
        stop.on_train_batch_end = lambda trainer, *args: setattr(trainer, "should_stop", trainer.global_step >= halt)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, val_check_interval=check, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, gradient_clip_val=1.0, callbacks=[stop],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return trainer


def token_ids(module: LanguageModelPretraining) -> list[list[int]]:
    return [[*module.tokenizer(text.text).input_ids, module.tokenizer.eos_token_id] for text in TEXTS]


def losses(module: LanguageModelPretraining, sequences: list[list[int]]) -> torch.Tensor:
    input_ids, position_ids = packed(sequences, module.tokenizer.pad_token_id)
    return module.token_losses(module.logits(input_ids, position_ids), input_ids)


def test_rows_hold_every_text_whole_and_little_else(tmp_path: Path) -> None:
    sequences = token_ids(language_model(tmp_path))
    input_ids, position_ids = packed(sequences, 0)
    assert input_ids.shape == position_ids.shape
    assert input_ids.shape[1] == max(map(len, sequences))
    assert (input_ids == 0).float().mean() < 0.15
    starts = (position_ids == 0) & (input_ids != 0)
    found = []
    for row, column in starts.nonzero().tolist():
        ids = input_ids[row, column:].tolist()
        found.append(ids[: ids.index(2) + 1])
        length = len(found[-1])
        assert position_ids[row, column : column + length].tolist() == list(range(length))
    assert sorted(found) == sorted(sequences)


def test_texts_of_a_row_do_not_see_each_other(tmp_path: Path) -> None:
    module, sequences = language_model(tmp_path), token_ids(language_model(tmp_path))
    with torch.no_grad():
        together, *alone = (losses(module, texts) for texts in (sequences, *([sequence] for sequence in sequences)))
    # Everything but the first token is told, the end included.
    assert [len(each) for each in alone] == [len(sequence) - 1 for sequence in sequences]
    torch.testing.assert_close(together.sort().values, torch.cat(alone).sort().values, atol=1e-5, rtol=0)


def test_known_tokens_are_the_known_words(tmp_path: Path) -> None:
    tokenizer = language_model(tmp_path).tokenizer
    for text in TEXTS:
        encoding = tokenizer(text.text, return_offsets_mapping=True)
        indices = known_tokens(text, encoding.offset_mapping)
        words = tokenizer.decode([encoding.input_ids[index] for index in indices])
        assert words == " ".join(text.text[start:end] for start, end in text.known)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, first, second = (language_model(tmp_path) for _ in range(3))
    fit(whole, corpus(), 4)
    # The first half follows the schedule of the whole.
    fit(first, corpus(), 4, halt=2).save_checkpoint(tmp_path / "two.ckpt")
    fit(second, corpus(), 4, resume=tmp_path / "two.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    for ours, theirs in zip(whole.ema.shadow_params, second.ema.shadow_params, strict=True):
        assert torch.equal(ours, theirs)


def test_the_export_is_a_stock_llama_with_its_tokenizer(tmp_path: Path) -> None:
    module = language_model(tmp_path)
    fit(module, corpus(), 3)
    average = [weight.clone() for weight in module.ema.shadow_params]
    assert not torch.equal(average[0], next(module.model.parameters()))
    folder = module.export()["language model"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in Path(folder).iterdir()
    }
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, LlamaForCausalLM)
    assert torch.allclose(next(model.parameters()).float(), average[0], atol=1e-3)
    ids = tokenizer("a red dog left of a blue cat", return_tensors="pt").input_ids
    assert (ids[0, 0], model.config.vocab_size) == (model.config.bos_token_id, len(tokenizer))
    with torch.no_grad():
        expected = module.model.float()(input_ids=ids).logits
        torch.testing.assert_close(model.float()(input_ids=ids).logits, expected)
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 256


def test_without_averaging_the_last_weights_are_exported(tmp_path: Path) -> None:
    module = language_model(tmp_path, ema_decay=0.0)
    fit(module, corpus(), 3)
    for average, last in zip(module.ema.shadow_params, module.model.parameters(), strict=True):
        torch.testing.assert_close(average, last.detach(), atol=1e-6, rtol=0)


def test_a_second_start_keeps_the_vocabulary(tmp_path: Path) -> None:
    language_model(tmp_path)
    before = (tmp_path / "llm" / "tokenizer.json").stat().st_mtime_ns
    language_model(tmp_path)
    assert (tmp_path / "llm" / "tokenizer.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("text", "skills"), [(world_text, {"copy", "recall"}), (quadrant_text, {"copy"})])
def test_validation_tells_loss_and_skills(tmp_path: Path, text, skills: set[str]) -> None:
    trainer = fit(language_model(tmp_path), corpus(text))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    assert set(logged) == {"val/loss", *(f"val/{skill}" for skill in skills)}
    assert 4 < logged["val/loss"] < 8
    assert all(0 <= logged[f"val/{skill}"] < 0.5 for skill in skills)


@pytest.mark.slow
def test_it_learns_to_copy(tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_layers": 4, "num_heads": 4}
    module = language_model(tmp_path, **sizes, weight_decay=0.01)
    trainer = fit(module, CorpusData(quadrant_text, batch_size=64, num_train=100_000, num_val=128), 500, check=500)
    assert float(trainer.callback_metrics["val/copy"]) > 0.95


def test_training_texts_stay_out_of_validation() -> None:
    with pytest.raises(ValueError, match="num_train is 10,000,001; at most 10,000,000"):
        CorpusData(world_text, 4, 10_000_001)
