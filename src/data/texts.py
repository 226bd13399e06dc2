"""Texts for a language model, drawn from seeds as they are needed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from src.data.order import Draw, SteppedData

VALIDATION_START = 10_000_000
"""First seed of validation texts; no training reaches it."""


class Text(NamedTuple):
    """One text and what of it follows from what stands before, which a model that reads its context gets right.

    Attributes:
        text: All of it.
        known: Characters ``(start, end)`` of words that can be told.
        skill: What telling them takes, such as ``copy``; empty if there are none.
    """

    text: str
    known: tuple[tuple[int, int], ...] = ()
    skill: str = ""


def copied(words: Sequence[str], times: int = 2) -> Text:
    """The same words ``times`` times: the shortest task that needs to know what stood before a word."""
    once = f"{' '.join(words)}."
    stretches = tuple((at * (len(once) + 1), at * (len(once) + 1) + len(once)) for at in range(1, times))
    return Text(" ".join([once] * times), stretches, "copy")


def draw_words(vocabulary: Sequence[str], fewest: int, most: int, rng: np.random.Generator) -> list[str]:
    """``fewest`` to ``most`` words, repeats included."""
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
        text: Seed to text, such as ``src.data.world.texts.world_text``.
        batch_size: Texts per step and rank.
        num_train: Different texts before the first comes again.
        num_val: Validation texts.
        seed: Of the order.

    Raises:
        ValueError: If training texts would reach into those of validation.
    """

    def __init__(
        self, text: Callable[[int], Text], batch_size: int, num_train: int, num_val: int = 256, seed: int = 0
    ) -> None:
        super().__init__(batch_size, seed)
        if num_train > VALIDATION_START:
            raise ValueError(f"data.num_train is {num_train:,}; at most {VALIDATION_START:,} texts are for training")
        self.train, self.val = _Texts(text, 0, num_train), _Texts(text, VALIDATION_START, num_val)
