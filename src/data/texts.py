"""Texts for a language model, made from seeds when they are needed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from src.data.order import Draw, SteppedData
from src.data.ranges import BatchSize, Count, Number, Seed

VALIDATION_START = 10_000_000
"""First seed of validation texts; no training reaches it."""


class Text(NamedTuple):
    """One text, and the words in it that its beginning determines, which a model must use its context to predict.

    Attributes:
        text: The whole text.
        known: Character spans ``(start, end)`` of the determined words.
        skill: Skill that predicting them takes, such as ``copy``; empty if there are none.
    """

    text: str
    known: tuple[tuple[int, int], ...] = ()
    skill: str = ""


def copied(words: Sequence[str], times: int = 2) -> Text:
    """Repeat the words ``times`` times: the simplest text in which words are determined by earlier ones."""
    once = f"{' '.join(words)}."
    stretches = tuple((at * (len(once) + 1), at * (len(once) + 1) + len(once)) for at in range(1, times))
    return Text(" ".join([once] * times), stretches, "copy")


def draw_words(vocabulary: Sequence[str], fewest: int, most: int, rng: np.random.Generator) -> list[str]:
    """Draw ``fewest`` to ``most`` words, with repetition."""
    return [str(word) for word in rng.choice(list(vocabulary), int(rng.integers(fewest, most + 1)))]


class _Texts(Dataset):
    def __init__(self, text: Callable[[int], Text], first: int, number: int) -> None:
        self.text, self.first, self.number = text, first, number

    def __len__(self) -> int:
        return self.number

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        texts = [self.text(self.first + draw.index) for draw in draws]
        return {"texts": texts, "step": torch.tensor(draws[0].step)}


class CorpusData(SteppedData):
    """Batches of texts for pretraining a language model.

    Args:
        text: Makes a text from a seed, such as ``src.data.world.texts.world_text``.
        batch_size: Texts per step and rank.
        num_train: Number of different texts before the first comes again.
        num_val: Number of validation texts.
        seed: Seed of the order.

    Raises:
            ValueError: If training would use seeds of validation texts.
    """

    def __init__(
        self,
        text: Callable[[int], Text],
        batch_size: BatchSize,
        num_train: Count,
        num_val: Number = 256,
        seed: Seed = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        if num_train > VALIDATION_START:
            raise ValueError(f"data.num_train is {num_train:,}; at most {VALIDATION_START:,} texts are for training")
        self.train, self.val = _Texts(text, 0, num_train), _Texts(text, VALIDATION_START, num_val)
