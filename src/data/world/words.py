"""The world's vocabulary as a CLIP tokenizer: every word of the grammar is one token, other words fall into pieces."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers

from src.data.world.scenes import PREFIXES, RELATIONS
from src.data.world.vocabulary import BACKGROUNDS, COLORS, HELD_OUT_STYLES, NOUNS, PATTERNS, STYLES

RARE = ("ktn", "pll", "ucd", "sks")
"""Single tokens that no caption uses: where a modifier token can start from."""
START, END = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """Every word that captions, templates and styles may use, sorted."""
    phrases = [*PREFIXES, *RELATIONS, *BACKGROUNDS.values(), *STYLES.values(), *HELD_OUT_STYLES.values()]
    phrases += ["and in style of an the with two very small far away zoomed", *NOUNS, *COLORS, *PATTERNS, *RARE]
    return sorted({word for phrase in phrases for word in phrase.replace("-", " ").replace(",", " ").split()})


def merges() -> list[tuple[str, str]]:
    """Byte-pair merges, in order, that turn every word of the world into one token.

    The tokenizers library breaks ties between equally frequent pairs by chance, so that two runs number the same words
    differently; here the alphabetically first pair wins.
    """
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words()]
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


def write_clip_tokenizer(folder: str | Path) -> None:
    """Write ``vocab.json`` and ``merges.txt`` in CLIP's format: byte-level pairs with an end-of-word mark."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = merges()
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in pairs), START, END]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in pairs)]) + "\n")
