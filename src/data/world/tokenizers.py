"""Tokenizers for the world: every word of the grammar is one token, other words are split into pieces."""

import json
import string
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import T5TokenizerFast

from src.data.world.long_captions import new_words
from src.data.world.scenes import PREFIXES, RELATIONS
from src.data.world.vocabulary import BACKGROUNDS, COLORS, NOUNS, PATTERNS, STYLES

RARE = ("ktn", "pll", "ucd", "sks")
"""Single tokens that no caption uses, from which a modifier token can start."""
START, END = "<|startoftext|>", "<|endoftext|>"
PAD, BEGIN, FINISH = "<pad>", "<s>", "</s>"
SPACE = "\u2581"
"""Mark before every word in the language model's tokens, as in Llama's."""
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-'"


def words() -> list[str]:
    """List every word that captions and templates of generators may use, sorted; shipped models count on them."""
    others = ["neon sign blueprint sepia print mosaic", "an with two very small far away zoomed", *RARE]
    return sorted({*taught_words(), *_split(others)})


def taught_words() -> list[str]:
    """List every word of the captions that text-to-image models of the world are trained on, sorted."""
    phrases = [*PREFIXES, *RELATIONS, *BACKGROUNDS.values(), *STYLES.values(), "and in style of the"]
    return sorted(_split([*phrases, *NOUNS, *COLORS, *PATTERNS]))


def _split(phrases: Iterable[str]) -> set[str]:
    return {word for phrase in phrases for word in phrase.replace("-", " ").replace(",", " ").split()}


def merges(more: Iterable[str] = ()) -> list[tuple[str, str]]:
    """List the byte-pair merges, in order, that turn every word of the world and of ``more`` into one token."""
    return _merges([[*word[:-1], f"{word[-1]}</w>"] for word in sorted({*words(), *_split(more)})])


def _merges(spelled: list[list[str]]) -> list[tuple[str, str]]:
    """Merge the most frequent pair until every word is whole.

    Of equally frequent pairs the alphabetically first wins. The tokenizers library chooses at random, so that two runs
    number the same words differently.
    """
    found = []
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        spelled = [_merged(word, best) for word in spelled]
    return found


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for piece in word:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def write_clip_tokenizer(folder: str | Path, more: Iterable[str] = ()) -> None:
    """Write ``vocab.json`` and ``merges.txt`` in CLIP's format: byte-level pairs with an end-of-word mark.

    Args:
        folder: Folder to write to; it is created if it does not exist.
        more: Phrases whose words are tokens, too, beside those of ``words``.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = merges(more)
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in pairs), START, END]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in pairs)]) + "\n", encoding="utf-8"
    )


def write_llm_tokenizer(folder: str | Path, max_length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` like Llama's, for short and long captions.

    Text is lower-cased. Every word with the space before it is one token, other words are split into letters, anything
    else into bytes, so nothing is unknown. A token marks the beginning, and none the end.

    Args:
        folder: Folder to write to; it is created if it does not exist.
        max_length: Longest text in tokens that the model takes.
    """
    spelled = [[SPACE, *word] for word in sorted({*words(), *new_words()})]
    pairs = _merges([*spelled, ["-", "u", "p"]])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [PAD, BEGIN, FINISH, *bytes_, SPACE, *LETTERS, *("".join(pair) for pair in pairs)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, byte_fallback=True))
    tokenizer.add_special_tokens([PAD, BEGIN, FINISH])
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, vocabulary[BEGIN])]
    )
    pieces = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(pieces)
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": FINISH,
        "pad_token": PAD,
        "padding_side": "right",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


SPACE = "▁"
WORD, CHARACTER = -5.0, -20.0
"""Log-probabilities with which a whole word is likelier than its characters, however few they are."""


def write_t5_tokenizer(folder: str | Path, max_length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` in T5's format: unigrams, ``</s>`` at the end.

    Args:
        folder: Folder to write to; it is created if it does not exist.
        max_length: Longest prompt in tokens, with the end token.
    """
    known = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (SPACE, CHARACTER)]
    whole = [(SPACE + word, WORD) for word in words()]
    # "-up" is the rest of "close-up".
    pieces = [("-up", WORD), *((character, CHARACTER) for character in sorted(string.printable.strip()))]
    tokenizer = T5TokenizerFast(vocab=[*known, *whole, *pieces], extra_ids=0, model_max_length=max_length)
    tokenizer.save_pretrained(folder)
