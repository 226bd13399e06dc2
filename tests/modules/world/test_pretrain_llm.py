"""The world's language model: packed texts do not see each other, a resumed training is the same, the export loads."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from src.data.texts import CorpusData
from src.data.world.quadrants import quadrant_text
from src.data.world.texts import world_text
from src.modules.training.learner import LearnerModule
from src.modules.world.language_model import LanguageModelPretraining, known_tokens, packed
from tests.pretrainings import check_resume, fit, module

TEXTS = [world_text(seed) for seed in range(40)]


def language_model(folder: Path, ema_decay: float = 0.99) -> LearnerModule:
    return module(LanguageModelPretraining(str(folder / "llm"), 32, 64, num_layers=2, num_heads=2), ema_decay)


def corpus(folder: Path, text=world_text) -> CorpusData:
    return CorpusData(text, batch_size=4, num_train=32, num_val=8)


def token_ids(learner: LanguageModelPretraining) -> list[list[int]]:
    return [[*learner.tokenizer(text.text).input_ids, learner.tokenizer.eos_token_id] for text in TEXTS]


def losses(learner: LanguageModelPretraining, sequences: list[list[int]]) -> torch.Tensor:
    input_ids, position_ids = packed(sequences, learner.tokenizer.pad_token_id)
    return learner.token_losses(learner.logits(input_ids, position_ids), input_ids)


def test_rows_hold_every_text_whole_and_little_else(tmp_path: Path) -> None:
    sequences = token_ids(language_model(tmp_path).learner)
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
    learner = language_model(tmp_path).learner
    sequences = token_ids(learner)
    with torch.no_grad():
        together, *alone = (losses(learner, texts) for texts in (sequences, *([sequence] for sequence in sequences)))
    # Everything but the first token is told, the end included.
    assert [len(each) for each in alone] == [len(sequence) - 1 for sequence in sequences]
    torch.testing.assert_close(together.sort().values, torch.cat(alone).sort().values, atol=1e-5, rtol=0)


def test_known_tokens_are_the_known_words(tmp_path: Path) -> None:
    tokenizer = language_model(tmp_path).learner.tokenizer
    for text in TEXTS:
        encoding = tokenizer(text.text, return_offsets_mapping=True)
        indices = known_tokens(text, encoding.offset_mapping)
        words = tokenizer.decode([encoding.input_ids[index] for index in indices])
        assert words == " ".join(text.text[start:end] for start, end in text.known)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    check_resume(language_model, corpus, tmp_path)


def test_the_export_is_a_stock_llama_with_its_tokenizer(tmp_path: Path) -> None:
    trained = language_model(tmp_path)
    fit(trained, corpus(tmp_path), 3)
    average = [weight.clone() for weight in trained.ema.shadow_params]
    assert not torch.equal(average[0], next(trained.parameters()))
    folder = trained.export()["language model"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in Path(folder).iterdir()
    }
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, LlamaForCausalLM)
    assert torch.allclose(next(model.parameters()).float(), average[0], atol=1e-3)
    ids = tokenizer("a red dog left of a blue cat", return_tensors="pt").input_ids
    assert (ids[0, 0], model.config.vocab_size) == (model.config.bos_token_id, len(tokenizer))
    with torch.no_grad():
        expected = trained.learner.model.float()(input_ids=ids).logits
        torch.testing.assert_close(model.float()(input_ids=ids).logits, expected)
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 256


def test_without_averaging_the_last_weights_are_exported(tmp_path: Path) -> None:
    trained = language_model(tmp_path, ema_decay=0.0)
    fit(trained, corpus(tmp_path), 3)
    for average, last in zip(trained.ema.shadow_params, trained.parameters(), strict=True):
        torch.testing.assert_close(average, last.detach(), atol=1e-6, rtol=0)


def test_a_second_start_keeps_the_vocabulary(tmp_path: Path) -> None:
    language_model(tmp_path)
    before = (tmp_path / "llm" / "tokenizer.json").stat().st_mtime_ns
    language_model(tmp_path)
    assert (tmp_path / "llm" / "tokenizer.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("text", "skills"), [(world_text, {"copy", "recall"}), (quadrant_text, {"copy"})])
def test_validation_tells_loss_and_skills(tmp_path: Path, text, skills: set[str]) -> None:
    trainer = fit(language_model(tmp_path), corpus(tmp_path, text))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    assert set(logged) == {"val/loss", *(f"val/{skill}" for skill in skills)}
    assert 4 < logged["val/loss"] < 8
    assert all(0 <= logged[f"val/{skill}"] < 0.5 for skill in skills)


@pytest.mark.slow
def test_it_learns_to_copy(tmp_path: Path) -> None:
    llama = LanguageModelPretraining(str(tmp_path / "llm"), 96, 256, 4, 4)
    trained = LearnerModule(llama, partial(AdamW, lr=2e-3, betas=(0.9, 0.95)), None, "cosine", 100, 0.1, 0.99)
    data = CorpusData(quadrant_text, batch_size=64, num_train=100_000, num_val=128)
    trainer = fit(trained, data, 500, val_check_interval=500, gradient_clip_val=1.0)
    assert float(trainer.callback_metrics["val/copy"]) > 0.95


def test_training_texts_stay_out_of_validation() -> None:
    with pytest.raises(ValueError, match="num_train is 10,000,001; at most 10,000,000"):
        CorpusData(world_text, 4, 10_000_001)
