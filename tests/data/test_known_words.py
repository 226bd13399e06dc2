"""What a model was taught stands beside its weights, and what it was not is said."""

import logging
from pathlib import Path

import pytest

from src.data.known_words import KnownWords, warn_of_unknown, write_known_words
from src.data.world.rendered import SAMPLERS
from src.data.world.tokenizers import taught_words


def test_the_words_of_texts_that_are_missing_in_the_list(tmp_path: Path) -> None:
    write_known_words(tmp_path, ["dog", "a", "on", "the", "grass"])
    known = KnownWords.read(tmp_path)
    assert known is not None
    assert known.unknown(["A dog, on the grass.", "a Golden retriever's vase 4", "a vase"]) == [
        *("golden", "retriever", "vase")
    ]


def test_a_model_without_a_list_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_unknown(KnownWords.read(tmp_path), ["a vase"])
    assert not caplog.records


def test_many_words_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_known_words(tmp_path, ["dog"])
    with caplog.at_level(logging.WARNING):
        warn_of_unknown(KnownWords.read(tmp_path), [" ".join(f"word{letter}" for letter in "abcdefghijk")])
    (record,) = caplog.records
    assert "worda, wordb" in record.getMessage() and "wordh and 3 more" in record.getMessage()
    assert str(tmp_path / "words.txt") in record.getMessage()


@pytest.mark.parametrize("model", ["sd", "infinity"])
def test_the_world_knows_the_words_of_the_captions_it_was_trained_on(root: Path, model: str) -> None:
    known = KnownWords.read(root / "world" / model)
    assert known is not None and known.words == set(taught_words())
    captions = [SAMPLERS["mixed_with_pairs"](seed).caption for seed in range(2000)]
    assert not known.unknown(captions)
    assert {word for caption in captions for word in caption.replace("-", " ").replace(",", "").split()} == known.words
    assert known.unknown(["a vase"]) == ["vase"]
