"""Pairs of prompts that differ in object, in colour, or in both: what studies of injected prompts are made of."""

from dataclasses import dataclass

import numpy as np

from src.data.world.vocabulary import COLORS, NOUNS

DIFFERENCES = {"object": (True, False), "color": (False, True), "both": (True, True)}
"""What changes from the base prompt to the other: the object, the colour."""


@dataclass(frozen=True)
class PromptPair:
    """A base prompt and the one that is injected into it, with the words that tell them apart."""

    base_object: str
    base_color: str
    injected_object: str
    injected_color: str

    @property
    def base(self) -> str:
        """The prompt of the whole generation."""
        return f"a photo of a {self.base_color} {self.base_object}"

    @property
    def injected(self) -> str:
        """The prompt whose influence is measured."""
        return f"a photo of a {self.injected_color} {self.injected_object}"


def prompt_pairs(difference: str, number: int, seed: int = 0) -> list[PromptPair]:
    """Distinct pairs, the same for the same seed.

    Args:
        difference: A key of ``DIFFERENCES``.
        number: How many.
        seed: Of the draws.

    Raises:
        ValueError: If the difference is unknown, or there are not that many pairs.
    """
    if difference not in DIFFERENCES:
        raise ValueError(f"prompts cannot differ in {difference!r}; choose one of {', '.join(DIFFERENCES)}")
    other_object, other_color = DIFFERENCES[difference]
    most = len(NOUNS) * len(COLORS) * (len(NOUNS) - 1 if other_object else 1) * (len(COLORS) - 1 if other_color else 1)
    if number > most:
        raise ValueError(f"{number} pairs of prompts were asked for; there are {most} that differ in {difference}")
    rng = np.random.default_rng([seed, 6])
    found: dict[PromptPair, None] = {}
    while len(found) < number:
        nouns, colors = rng.permutation(NOUNS)[:2].tolist(), rng.permutation(list(COLORS))[:2].tolist()
        found[PromptPair(nouns[0], colors[0], nouns[other_object], colors[other_color])] = None
    return list(found)
