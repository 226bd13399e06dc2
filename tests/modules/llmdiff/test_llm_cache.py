"""Encodings on disk: found again, never stale; the model may go."""

import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.modules.llmdiff.encoder import EncodingCache, LLMEncoder
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.options import EncodingOptions
from tests.llms import BLOCKS, WIDTH, tiny_llm, tiny_llm_folder

PROMPTS = ["a red dog", "a very small cat on the left of a tree", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llm_folder(tmp_path_factory.mktemp("llm"))


def encoder(folder: Path, cache_dir: Path, dtype: str = "float32", **options) -> LLMEncoder:
    """As another process would build it: nothing is in memory yet."""
    cache = EncodingCache(cache_dir)
    return LLMEncoder(LanguageModel.from_pretrained(str(folder), dtype), EncodingOptions(**options), cache)


def files(cache_dir: Path) -> list[Path]:
    return sorted(cache_dir.rglob("*.safetensors"))


def test_what_was_encoded_is_read_without_the_model(folder: Path, tmp_path: Path) -> None:
    first, second = encoder(folder, tmp_path), encoder(folder, tmp_path)
    computed, read = first.encode(PROMPTS), second.encode(PROMPTS[::-1])
    assert torch.equal(computed.states, read.states.flip(0)) and torch.equal(computed.mask, read.mask.flip(0))
    assert first.language_model.is_loaded and not second.language_model.is_loaded


@pytest.mark.parametrize("ahead", [False, True])
def test_states_that_are_not_finite_are_neither_kept_nor_used(folder: Path, tmp_path: Path, ahead: bool) -> None:
    spoilt = encoder(folder, tmp_path)
    spoilt.language_model.decoder.blocks[1].mlp.down_proj.weight.data[0] = torch.finfo(torch.float32).max
    with pytest.raises(ValueError, match=r"the states that .* has of '.*' are not finite \(.*llm\.dtype=bfloat16"):
        spoilt.encode_ahead(PROMPTS) if ahead else spoilt.encode(PROMPTS)
    assert not files(tmp_path)


def test_rows_are_kept_without_padding(folder: Path, tmp_path: Path) -> None:
    lengths = encoder(folder, tmp_path).encode(PROMPTS).mask.sum(1).tolist()
    shapes = [load_file(path)["states"].shape for path in files(tmp_path)]
    assert sorted(shape[1] for shape in shapes) == sorted(lengths) == [2, 5, 12]
    assert all(shape[::2] == (BLOCKS + 1, WIDTH) for shape in shapes)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"features": "sum"},
        {"context": "self+first"},
        {"append_eos": False},
        {"max_length": 100},
        {"blocks": [0, 1]},
    ],
    ids=str,
)
def test_another_precision_or_option_is_another_encoding(folder: Path, tmp_path: Path, change: dict) -> None:
    encoder(folder, tmp_path).encode(PROMPTS)
    other = encoder(folder, tmp_path, **change)
    other.encode(PROMPTS)
    assert other.language_model.is_loaded and len(files(tmp_path)) == 2 * len(PROMPTS)


def test_a_model_that_was_trained_on_in_place_is_another_one(folder: Path, tmp_path: Path) -> None:
    own = shutil.copytree(folder, tmp_path / "llm")
    before = encoder(own, tmp_path / "cache").encode(PROMPTS).states
    tiny_llm(seed=1).save_pretrained(own)
    after = encoder(own, tmp_path / "cache").encode(PROMPTS).states
    assert not torch.allclose(before, after)
    assert len(files(tmp_path / "cache")) == 2 * len(PROMPTS)


def test_encoded_ahead_the_model_can_go(folder: Path, tmp_path: Path) -> None:
    ahead = encoder(folder, tmp_path)
    assert ahead.encode_ahead([*PROMPTS, PROMPTS[0]]) == len(PROMPTS)
    assert ahead.encode_ahead(PROMPTS) == 0
    ahead.free()
    before = ahead.encode(PROMPTS)
    assert not ahead.language_model.is_loaded
    # What is not there loads it again.
    ahead.encode(["a tree"])
    assert ahead.language_model.is_loaded
    assert torch.equal(before.states, ahead.encode(PROMPTS).states)


def test_a_model_that_is_not_kept_is_freed_after_every_call(folder: Path, tmp_path: Path) -> None:
    model = LanguageModel.from_pretrained(str(folder))
    weights = weakref.ref(model.decoder.module)
    LLMEncoder(model, cache=EncodingCache(tmp_path), keep_loaded=False).encode(PROMPTS)
    assert not model.is_loaded and weights() is None


def test_ahead_needs_a_cache(folder: Path) -> None:
    with pytest.raises(ValueError, match="there is none; give the encoder a cache"):
        LLMEncoder(LanguageModel.from_pretrained(str(folder))).encode_ahead(PROMPTS)
