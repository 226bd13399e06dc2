"""The world's vocabulary as a CLIP tokenizer: every word of the grammar is one token, other words fall into pieces."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

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


def write_clip_tokenizer(folder: str | Path) -> None:
    """Write ``vocab.json`` and ``merges.txt`` in CLIP's format: byte-level pairs with an end-of-word mark."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=20_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False, initial_alphabet=alphabet
    )
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(words(), trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges), START, END]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
