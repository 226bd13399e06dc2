"""The world's vocabulary as a T5 tokenizer: every word of the grammar is one token, others fall into characters."""

import string
from pathlib import Path

from transformers import T5TokenizerFast

from src.data.world.words import words

SPACE = "▁"
WORD, CHARACTER = -5.0, -20.0
"""Log-probabilities: a whole word is likelier than its characters, however few they are."""


def write_t5_tokenizer(folder: str | Path, max_length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` in T5's format: unigrams, ``</s>`` at the end.

    Args:
        folder: Made if need be.
        max_length: Longest prompt in tokens, the end included.
    """
    known = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (SPACE, CHARACTER)]
    whole = [(SPACE + word, WORD) for word in words()]
    # What follows the hyphen of "close-up".
    pieces = [("-up", WORD), *((character, CHARACTER) for character in sorted(string.printable.strip()))]
    tokenizer = T5TokenizerFast(vocab=[*known, *whole, *pieces], extra_ids=0, model_max_length=max_length)
    tokenizer.save_pretrained(folder)
