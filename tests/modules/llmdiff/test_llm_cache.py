"""Encodings on disk: found again, never stale, never more than was allowed."""

import os
import shutil
import time
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.modules.backbones.fingerprint import fingerprint
from src.modules.llmdiff.encoder import EncodingCache, LLMEncoder
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.options import EncodingOptions
from tests.llms import BLOCKS, WIDTH, tiny_llm, tiny_llm_folder, tiny_tokenizer

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


def test_a_fingerprint_covers_weights_configuration_and_tokenizer(folder: Path, tmp_path: Path) -> None:
    own = shutil.copytree(folder, tmp_path / "llm")
    assert fingerprint(own) == fingerprint(folder)
    tiny_tokenizer(adds_first=False).save_pretrained(own)
    other_tokenizer = fingerprint(own)
    config = own / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert len({fingerprint(folder), other_tokenizer, fingerprint(own)}) == 3
    (own / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors"):
        fingerprint(own)


def test_of_large_files_chunks_are_enough_to_see_training(tmp_path: Path) -> None:
    content = bytearray(os.urandom(8 * 2**20))
    (tmp_path / "model.safetensors").write_bytes(content)
    before = fingerprint(tmp_path)
    for position in range(0, len(content), 10_000):
        content[position : position + 4096] = os.urandom(min(4096, len(content) - position))
    (tmp_path / "model.safetensors").write_bytes(content)
    assert fingerprint(tmp_path) != before


def test_a_damaged_file_is_encoded_again(folder: Path, tmp_path: Path) -> None:
    whole = encoder(folder, tmp_path).encode(PROMPTS)
    damaged = files(tmp_path)[0]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    again = encoder(folder, tmp_path).encode(PROMPTS)
    assert (again.states - whole.states).abs().max() < 1e-5
    assert load_file(damaged)["states"].shape[0] == BLOCKS + 1


def test_a_write_that_is_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: dict, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("src.modules.llmdiff.encoder.save_file", full)
    cache = EncodingCache(tmp_path)
    with pytest.raises(OSError, match="no space"):
        cache.write(tmp_path / "ab" / "c.safetensors", torch.zeros(2))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_folder_stays_within_its_size_and_the_oldest_go(tmp_path: Path) -> None:
    cache = EncodingCache(tmp_path, max_gigabytes=41_000 / 1e9)
    paths = [tmp_path / f"{number:02d}" / "0.safetensors" for number in range(20)]
    for number, path in enumerate(paths):
        cache.write(path, torch.zeros(1000))
        os.utime(path, (number, number))
        if number == 6:
            assert cache.read(paths[0]) is not None
        assert sum(file.stat().st_size for file in files(tmp_path)) <= 41_000
    # Read on the way, so not the oldest any more; the others went in the order in which they came.
    assert paths[0].exists() and not paths[1].exists() and paths[-1].exists()
    left = [path.exists() for path in paths[1:]]
    assert left == sorted(left) and sum(left) >= 5


def test_a_read_file_counts_as_used(tmp_path: Path) -> None:
    cache, path = EncodingCache(tmp_path), tmp_path / "00" / "0.safetensors"
    cache.write(path, torch.zeros(3))
    os.utime(path, (0, 0))
    assert cache.read(path) is not None and path.stat().st_mtime > time.time() - 60
    assert cache.read(tmp_path / "00" / "1.safetensors") is None


def test_a_size_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a positive size"):
        EncodingCache(tmp_path, 0)


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
