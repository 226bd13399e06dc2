"""Object phrases in captions, and text states that tell of each object in its own phrase alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from src.data.world.tokenizers import write_clip_tokenizer
from src.modules.world.text_to_image import ObjectPhrases

CAPTIONS = ["a sketch of a red striped dog left of a blue cat on the grass", "dog on the beach", "", "a dog, a red cup"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> CLIPTokenizer:
    write_clip_tokenizer(tmp_path)
    return CLIPTokenizer.from_pretrained(tmp_path, model_max_length=24)


@pytest.fixture
def ids(tokenizer: CLIPTokenizer) -> Tensor:
    return tokenizer(CAPTIONS, padding="max_length", return_tensors="pt").input_ids


def test_a_phrase_is_article_attributes_and_noun(tokenizer: CLIPTokenizer, ids: Tensor) -> None:
    places = ObjectPhrases(tokenizer).places(ids)
    words = [[tokenizer.decode(ids[0, at]).strip() for at in (places[0] == which).nonzero()[:, 0]] for which in (1, 2)]
    assert words == [["a", "red", "striped", "dog"], ["a", "blue", "cat"]]
    assert (places[1] > 0).sum() == 1 and places[2].sum() == 0
    assert places[3].unique().tolist() == [0, 1, 2]


def test_other_objects_stand_in_the_same_places(tokenizer: CLIPTokenizer, ids: Tensor) -> None:
    phrases = ObjectPhrases(tokenizer)
    others = phrases.others(ids, torch.Generator().manual_seed(0))
    assert torch.equal(phrases.places(others), phrases.places(ids))
    assert torch.equal(others[phrases.places(ids) == 0], ids[phrases.places(ids) == 0])
    drawn = {tuple(phrases.others(ids[:1], torch.Generator().manual_seed(seed))[0].tolist()) for seed in range(20)}
    assert len(drawn) > 15


def test_each_row_knows_its_own_phrase_and_no_other(tokenizer: CLIPTokenizer, ids: Tensor) -> None:
    phrases, length = ObjectPhrases(tokenizer), ids.shape[1]

    def history(tokens: Tensor) -> Tensor:
        """A causal encoder that forgets nothing: row l holds tokens 0 to l."""
        return tokens[:, None, :].expand(-1, length, -1)

    drawn = [phrases.read_alone(history, ids, torch.Generator().manual_seed(seed)) for seed in range(40)]
    changed = torch.stack([states != ids[:, None, :] for states in drawn]).any(0)
    places = phrases.places(ids)
    attribute = torch.isin(ids, torch.cat(phrases.kinds))[:, None, :]
    own = (places[:, :, None] == places[:, None, :]) & (places > 0)[:, None, :]
    past = torch.ones(length, length, dtype=torch.bool).tril()
    assert torch.equal(changed & past, (attribute & ~own).expand_as(changed) & past)
