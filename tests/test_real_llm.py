"""Captions of the study of a real language model are encoded once, in all features, as any adapter would."""

import sys
from pathlib import Path

import pytest
import torch

from experiments.four_quadrants.study import FEATURES
from experiments.real_llm import study
from experiments.real_llm.study import Halved, encode_all, options, texts
from src.data.world.quadrants import FORMS
from src.modules.llmdiff.decoder import Decoder
from src.modules.llmdiff.encoder import LLMEncoder
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.states import read_each, read_states
from tests.llms import tiny_llm, tiny_llm_folder

CAPTIONS = ["red blue", "the red dog is left of the blue cat", ""]


def test_states_are_those_that_an_encoder_reads_and_are_read_once(tmp_path: Path) -> None:
    llm = LanguageModel.from_pretrained(str(tiny_llm_folder(tmp_path / "llm")))
    shared = Halved(tmp_path / "states")
    assert encode_all(llm, shared, CAPTIONS) == 3 and not llm.is_loaded
    assert encode_all(llm, shared, CAPTIONS) == 0 and not llm.is_loaded
    for features in FEATURES:
        kept = LLMEncoder(llm, options(features), shared).encode(CAPTIONS)
        assert not llm.is_loaded and kept.states.dtype == torch.float16
        own = LLMEncoder(llm, options(features)).encode(CAPTIONS)
        torch.testing.assert_close(kept.states.float(), own.states, atol=4e-3, rtol=1e-3)
        assert torch.equal(kept.mask, own.mask)
        llm.free()


def test_a_caption_that_lacks_one_feature_is_read_again(tmp_path: Path) -> None:
    llm = LanguageModel.from_pretrained(str(tiny_llm_folder(tmp_path / "llm")))
    shared = Halved(tmp_path / "states")
    encode_all(llm, shared, CAPTIONS)
    shared.path(shared.key(llm.identity, options("sum"), CAPTIONS[0])).unlink()
    assert encode_all(llm, shared, CAPTIONS) == 1


def test_features_of_one_pass_are_those_of_a_pass_each() -> None:
    decoder, ids = Decoder(tiny_llm()), torch.tensor([[3, 4, 5, 6], [7, 8, 9, 9]])
    chosen = [options(features) for features in FEATURES]
    for each, states in zip(chosen, read_each(decoder, ids, chosen), strict=True):
        assert torch.equal(states, read_states(decoder, ids, each))


def test_captions_stand_in_every_form() -> None:
    assert len(set(texts())) == 360 * len(FORMS) + 1


def test_without_the_file_the_study_says_why_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", "missing.gguf"])
    study.main()
    told = capsys.readouterr().out
    assert told == "skipped: there is no missing.gguf; the head of conf/llm/smollm2.yaml says how to get it\n"
