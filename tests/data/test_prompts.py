"""Prompts as tokens: templates, lengths, places."""

from pathlib import Path

import pytest
import torch
from transformers import T5TokenizerFast

from src.data.mentions import parse_prompt
from src.data.prompts import TEMPLATES, concept_positions, concept_span, initial_vector, tokenize
from tests.tiny import tokenizer

NOUNS = {"rex": "dog", "mittens": "cat"}


def test_unknown_names_are_said_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean <mittens>"):
        parse_prompt("a <mitens>", NOUNS)
    with pytest.raises(ValueError, match="add bank.whale=PATH"):
        parse_prompt("a <whale>", {})


def test_positions_are_those_of_the_words(tmp_path: Path) -> None:
    words = tokenizer(tmp_path)
    marked, rows = concept_positions(words, "a photo of a red <rex> next to a <mittens>", NOUNS)
    tokens = words.convert_ids_to_tokens(words(marked.plain).input_ids)
    assert [(name, [tokens[at] for at in positions]) for name, positions in rows] == [
        ("rex", ["a</w>", "dog</w>"]),
        ("mittens", ["a</w>", "cat</w>"]),
    ]
    assert rows[0][1] == [4, 6] and rows[1][1] == [9, 10]


@pytest.mark.parametrize("noun", ["dog", "coffee cup", "zebra"])
def test_every_template_ends_with_the_concept(tmp_path: Path, noun: str) -> None:
    words = tokenizer(tmp_path)
    for template in TEMPLATES:
        prompt, span = concept_span(words, template, noun)
        ids = words(prompt).input_ids
        assert span.stop == len(ids) - 1
        assert words.decode(ids[span]).strip() == f"a {noun}"


def test_v_star_starts_at_the_mean_of_the_tokens_of_its_word(tmp_path: Path) -> None:
    words = tokenizer(tmp_path)
    table = torch.randn(len(words), 4, generator=torch.Generator().manual_seed(0))
    dog, cat = (words.convert_tokens_to_ids(f"{word}</w>") for word in ("dog", "cat"))
    assert torch.equal(initial_vector(words, table, "dog"), table[dog])
    assert torch.allclose(initial_vector(words, table, "dog cat"), (table[dog] + table[cat]) / 2)


def test_a_prompt_that_is_too_long_is_not_cut(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="62 tokens, but the text encoder takes 32"):
        tokenize(tokenizer(tmp_path), ["a dog " * 30])


def test_an_empty_noun_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class_noun=dog"):
        concept_span(tokenizer(tmp_path), TEMPLATES[0], " ")


def test_where_a_tokenizer_puts_a_token_for_the_space_before_an_article_its_own_token_is_the_slot() -> None:
    """T5's vocabulary has no piece for "a" with its space."""
    pieces = [*((piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")), ("▁", -2.0), ("▁photo", -1.0), ("▁of", -1.0)]
    words = T5TokenizerFast(vocab=[*pieces, ("▁dog", -1.0), ("a", -3.0)], extra_ids=0)
    marked, ((_, positions),) = concept_positions(words, "photo of a <rex>", NOUNS, str.lower)
    tokens = words.convert_ids_to_tokens(words(marked.plain).input_ids)
    assert tokens[2:4] == ["▁", "a"] and [tokens[at] for at in positions] == ["a", "▁dog"]
    assert concept_span(words, "photo of {}", "dog") == ("photo of a dog", slice(positions[0], positions[1] + 1))
