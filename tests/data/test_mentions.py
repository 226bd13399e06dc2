"""Which tokens a mention takes, with the tokenizers of real models."""

import re

import pytest
from transformers import PreTrainedTokenizerBase, T5TokenizerFast

from src.data.mentions import check_name, mention_of, mentioned, parse_prompt
from src.data.prompts import TEMPLATES, concept_positions, concept_span
from tests.word_pieces import clip, llama, t5

NOUNS = {"rex": "dog", "fido": "dog", "mittens": "cat", "gold": "golden retriever", "my-cup": "coffee cup"}

READ = {
    # An article, a possessive, a demonstrative or the like serves.
    "a <rex>": ("a dog", ["a"]),
    "A <rex>": ("A dog", ["A"]),
    "THE <rex>": ("THE dog", ["THE"]),
    "a <rex> on the grass": ("a dog on the grass", ["a"]),
    "a photo of a <rex>": ("a photo of a dog", ["a"]),
    "his <rex>": ("his dog", ["his"]),
    "My Big <rex> Sleeps": ("My Big dog Sleeps", ["My"]),
    "one <rex>": ("one dog", ["one"]),
    "this <rex>": ("this dog", ["this"]),
    "another tiny <rex>": ("another tiny dog", ["another"]),
    "a man and his <rex>": ("a man and his dog", ["his"]),
    "a girl hugging her <rex>": ("a girl hugging her dog", ["her"]),
    "anna's <rex>": ("anna's dog", ["'s"]),
    "John\u2019s big <rex>": ("John\u2019s big dog", ["\u2019s"]),
    "<rex>'s <mittens>": ("a dog's cat", ["a", "'s"]),
    # Adjectives may stand between.
    "a big fluffy <rex>": ("a big fluffy dog", ["a"]),
    "a big, fluffy <rex>": ("a big, fluffy dog", ["a"]),
    "a black and white <rex>": ("a black and white dog", ["a"]),
    "a very, very big <rex>": ("a very, very big dog", ["a"]),
    "a photo of a red striped <rex>": ("a photo of a red striped dog", ["a"]),
    "a walking <rex>": ("a walking dog", ["a"]),
    "a big smiling <rex>": ("a big smiling dog", ["a"]),
    "a striped <rex>": ("a striped dog", ["a"]),
    "a 3d <rex>": ("a 3d dog", ["a"]),
    "a two-headed <rex>": ("a two-headed dog", ["a"]),
    "a 10-year-old <rex>": ("a 10-year-old dog", ["a"]),
    # What belongs to another word does not serve; "a" is inserted.
    "<rex>": ("a dog", ["a"]),
    "  <rex> ": ("a dog", ["a"]),
    "a photo of <rex>": ("a photo of a dog", ["a"]),
    "<rex> and <mittens>": ("a dog and a cat", ["a", "a"]),
    "a <rex> and <mittens>": ("a dog and a cat", ["a", "a"]),
    "A <rex> wearing <mittens>": ("A dog wearing a cat", ["A", "a"]),
    "a cat and <rex>": ("a cat and a dog", ["a"]),
    "a cat and a <rex>": ("a cat and a dog", ["a"]),
    "two cats and <rex>": ("two cats and a dog", ["a"]),
    "a cat wearing <rex>": ("a cat wearing a dog", ["a"]),
    "a dog walking <rex>": ("a dog walking a dog", ["a"]),
    "a dog named <rex>": ("a dog named a dog", ["a"]),
    "a man loves <rex>": ("a man loves a dog", ["a"]),
    "a man in black and white <rex>": ("a man in black and white a dog", ["a"]),
    "the photo <rex>": ("the photo a dog", ["a"]),
    "that is <rex>": ("that is a dog", ["a"]),
    "it's <rex>": ("it's a dog", ["a"]),
    "a quiet old town market square <rex>": ("a quiet old town market square a dog", ["a"]),
    "a car, <rex>": ("a car, a dog", ["a"]),
    "a city, old <rex>": ("a city, old a dog", ["a"]),
    # Several mentions, of equal and of longer nouns.
    "a <rex> next to a <fido>": ("a dog next to a dog", ["a", "a"]),
    "a <rex> next to a <rex>": ("a dog next to a dog", ["a", "a"]),
    "the <mittens> and my <rex>": ("the cat and my dog", ["the", "my"]),
    "a <rex>, a <mittens>, and a <gold>": ("a dog, a cat, and a golden retriever", ["a", "a", "a"]),
    "a <my-cup>, <rex>": ("a coffee cup, a dog", ["a", "a"]),
    "a big <gold> on the grass": ("a big golden retriever on the grass", ["a"]),
    "<gold>'s cup": ("a golden retriever's cup", ["a"]),
    # Punctuation may touch a mention.
    "<rex>'s cup": ("a dog's cup", ["a"]),
    "<rex>\u2019s cup": ("a dog\u2019s cup", ["a"]),
    "a <rex>.": ("a dog.", ["a"]),
    "a <rex>?!": ("a dog?!", ["a"]),
    "a <rex>-like cake": ("a dog-like cake", ["a"]),
    '"<rex>"': ('"a dog"', ["a"]),
    "(<rex>:1.2)": ("(a dog:1.2)", ["a"]),
    "<rex>,<mittens>": ("a dog,a cat", ["a", "a"]),
    "<rex>/<mittens>": ("a dog/a cat", ["a", "a"]),
    "photo of <rex>\nand <mittens>": ("photo of a dog\nand a cat", ["a", "a"]),
    # Letters of other scripts, and one that is longer in lower case.
    "\u4e00\u53ea <rex> \u5728\u8349\u5730": ("\u4e00\u53ea a dog \u5728\u8349\u5730", ["a"]),
    "\u0130zmir <rex>": ("\u0130zmir a dog", ["a"]),
    "1 < 2 and 3 > 2": ("1 < 2 and 3 > 2", []),
    "no mention": ("no mention", []),
}

REFUSED = {
    "two <rex>": "one subject",
    "3 <rex>": "one subject",
    "two big <rex>": "one subject",
    "a few <rex>": "one subject",
    "these <rex>": "one subject",
    "a <rex>s": "<rex>s is a plural",
    "<gold>s": "<gold>s is a plural",
    "<rex>es": "<rex>es is a plural",
    "a cute<rex>": "glued to 'cute'; write a space before",
    "cat-<rex>": "glued to 'cat-'",
    "<rex>house": "glued to 'house'; write a space after",
    "<rex>2": "glued to '2'",
    "<rex>_x": "glued to '_x'",
    "<rex><mittens>": "<mittens> is glued to '<rex>'",
    "\u4e00\u53ea<rex>": "glued",
    "a <my dog>": "names <my dog>",
    "a <rex.2>": "did you mean <rex>",
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    return {"clip": clip(), "t5": t5(), "llama": llama()}


@pytest.mark.parametrize("prompt", READ)
def test_a_mention_takes_its_determiner_and_the_tokens_of_its_noun(
    tokenizers: dict[str, PreTrainedTokenizerBase], prompt: str
) -> None:
    plain, determiners = READ[prompt]
    for kind, tokenizer in tokenizers.items():
        as_read = str.lower if kind == "t5" else str
        marked, rows = concept_positions(tokenizer, prompt, NOUNS, as_read)
        assert marked.plain == plain
        assert [plain[slice(*mention.article)] for mention in marked.mentions] == determiners
        ids, taken = tokenizer(as_read(plain)).input_ids, []
        for determiner, mention, (name, positions) in zip(determiners, marked.mentions, rows, strict=True):
            assert plain[slice(*mention.noun)] == NOUNS[name]
            alone, span = concept_span(tokenizer, "{}", NOUNS[name], as_read)
            expected = tokenizer(alone).input_ids[span]
            assert [ids[at] for at in positions[1:]] == expected[1:]
            if determiner == "a" and (kind != "llama" or mention.article[0] == 0):
                assert ids[positions[0]] == expected[0]
            slot = tokenizer.convert_ids_to_tokens(ids[positions[0]]).removesuffix("</w>").lstrip("\u2581")
            assert slot and determiner.lower().replace("\u2019", "'").endswith(slot.lower())
            taken += positions
        assert len(taken) == len(set(taken)), "no token serves two mentions"


@pytest.mark.parametrize("prompt", REFUSED)
def test_what_is_not_one_subject_in_a_word_of_its_own_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match=re.escape(REFUSED[prompt])):
        parse_prompt(prompt, NOUNS)


def test_a_noun_that_a_tokenizer_joins_with_its_neighbours_is_refused(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    """A quote before "dog" leaves it its token in CLIP, but not where the space belongs to the word."""
    concept_positions(tokenizers["clip"], 'a "<rex>"', NOUNS)
    for kind in ("t5", "llama"):
        with pytest.raises(ValueError, match="reads 'dog' there as .* but alone as"):
            concept_positions(tokenizers[kind], 'a "<rex>"', NOUNS)


def test_an_article_that_a_tokenizer_joins_with_a_bracket_is_refused() -> None:
    """V* would overwrite the bracket, too."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581(a", -1.0), ("\u2581a", -1.0), ("(", -3.0)]
    words = T5TokenizerFast(vocab=[*pieces, ("\u2581dog", -1.0), (")", -3.0), ("\u2581", -2.0)], extra_ids=0)
    assert concept_positions(words, "<rex>)", NOUNS)[1] == [("rex", [0, 1])]
    with pytest.raises(ValueError, match="cannot be told apart"):
        concept_positions(words, "(<rex>)", NOUNS)


def test_the_real_tokenizer_of_clip_is_the_one_that_models_have(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    assert tokenizers["clip"]("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_templates_of_training_keep_their_tokens(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    for tokenizer in tokenizers.values():
        for template in TEMPLATES:
            _, span = concept_span(tokenizer, template, "golden retriever")
            _, ((_, positions),) = concept_positions(tokenizer, template.format("a <gold>"), NOUNS)
            assert positions == list(range(span.start, span.stop))


def test_a_long_prompt_is_not_printed_back() -> None:
    with pytest.raises(ValueError, match="names <whale>") as refusal:
        parse_prompt("a <whale> " * 10_000, {})
    assert len(str(refusal.value)) < 300


STRENGTHS = {"a <rex>": 1.0, "a <rex:0.7>": 0.7, "a <rex: 1.5>": 1.5, "a <rex :0>": 0.0, "a <rex:.25>": 0.25}


@pytest.mark.parametrize("prompt", STRENGTHS)
def test_a_mention_may_say_how_strongly_it_is_meant(prompt: str) -> None:
    marked = parse_prompt(prompt, NOUNS)
    assert marked.plain == "a dog"
    assert [one.strength for one in marked.mentions] == [STRENGTHS[prompt]]
    assert mentioned(prompt) == ["rex"]
    assert parse_prompt(f"a {mention_of('rex', STRENGTHS[prompt])}", NOUNS) == marked


@pytest.mark.parametrize("said", ["", "much", "2", "-1", "1.6", "nan", "inf", "1e-1", "0.7:0.3", "0,7"])
def test_a_strength_that_is_none_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match="give a number from 0, the plain noun, to 1.5: <rex:0.7>, or <rex> for 1"):
        parse_prompt(f"a <rex:{said}>", NOUNS)


def test_the_lora_of_another_program_leads_to_the_setting() -> None:
    with pytest.raises(ValueError, match=re.escape("backbone.lora=[{path:ink.safetensors,scale:0.8}]")):
        parse_prompt("a <rex>, <lora:ink:0.8>", NOUNS)


def test_names_are_found_whatever_their_strength() -> None:
    assert mentioned("<tom:0.5> with a <rex> and <tom>, 2 < 3") == ["tom", "rex"]


@pytest.mark.parametrize("name", ["rex", "my-dog", "_x", "Rex2"])
def test_names_that_a_prompt_can_name(name: str) -> None:
    check_name(name, "concept")
    assert parse_prompt(f"a <{name}>", {name: "dog"}).plain == "a dog"


@pytest.mark.parametrize("name", ["my dog", "rex's", "a.b", "../x", "a/b", "", "7", "-a", "\u72d7", "<rex>", "a\n"])
def test_names_that_no_prompt_can_name(name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits, _ and -"):
        check_name(name, "concept")
