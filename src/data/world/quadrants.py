"""Four quadrants: the smallest task that a bag of words cannot solve.

A caption lists four different colours; the 8 x 8 image shows them in reading order. Token embeddings carry no order, so
a model that paints the quadrants right has used the context of each word. ``told`` says the same picture in sentences
whose meaning needs more of the context: "the one on the left", references across sentences, negation, word order.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.order import Draw, SteppedData
from src.data.ranges import Count
from src.data.texts import Text, copied, draw_words
from src.data.world import vocabulary

COLORS = ("red", "green", "blue", "yellow", "white", "black")
NUM_VAL = 60
SIDE = 8
_RGB = torch.tensor([vocabulary.COLORS[color] for color in COLORS]) / 127.5 - 1


def split() -> tuple[list[str], list[str]]:
    """Split all 360 captions into 300 to train on and 60 held out, always the same."""
    captions = [f"{' '.join(colors)}." for colors in permutations(COLORS, 4)]
    order = np.random.default_rng(0).permutation(len(captions))
    return [captions[i] for i in order[NUM_VAL:]], [captions[i] for i in order[:NUM_VAL]]


def colors_of(caption: str) -> tuple[str, ...]:
    """Return the colours that a caption lists, in reading order.

    Raises:
        ValueError: If it does not list four known colours.
    """
    colors = tuple(caption.removesuffix(".").split())
    if len(colors) != 4 or not set(colors) <= set(COLORS):
        raise ValueError(f"{caption!r} does not list four of the colours {', '.join(COLORS)}")
    return colors


def told(captions: Sequence[str], form: str) -> list[str]:
    """Say what each caption lists in one of ``FORMS``; a caption and a form always have the same wording.

    Raises:
        ValueError: If there is no such form, or a caption does not list four known colours.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form of caption {form!r}; choose one of {', '.join(FORMS)}")
    listed = [colors_of(caption) for caption in captions]
    return [FORMS[form](each, np.random.default_rng([9, *map(COLORS.index, each)])) for each in listed]


def _listed(colors: Sequence[str], rng: np.random.Generator) -> str:
    """Reading order alone."""
    return f"{' '.join(colors)}."


def _placed(colors: Sequence[str], rng: np.random.Generator) -> str:
    """One of a row by its place, the other as the other."""
    sentences = []
    for place, row in zip(ROWS, (colors[:2], colors[2:]), strict=True):
        one = int(rng.integers(2))
        sentences.append(f"at the {place}, the one on the {SIDES[one]} is {row[one]} and the other is {row[1 - one]}.")
    return " ".join(_shuffled(sentences, rng))


def _referred(colors: Sequence[str], rng: np.random.Generator) -> str:
    """Once around the picture from any quadrant: every sentence refers to the one before."""
    around = [AROUND[(at + int(start)) % 4] for start in [rng.integers(4)] for at in range(4)]
    around = around if rng.integers(2) else [around[0], *reversed(around[1:])]
    first = around[0]
    sentences = [f"{colors[first]} is at the {ROWS[first // 2]} {SIDES[first % 2]}."]
    for before, here in pairwise(around):
        pronoun = "it" if len(sentences) % 2 else "that"
        sentences.append(f"{STEPS[here - before]} {pronoun} is {colors[here]}.")
    return " ".join(sentences)


def _negated(colors: Sequence[str], rng: np.random.Generator) -> str:
    """Who is in a row, and who of them is not on a side."""
    sentences = []
    for place, row in zip(ROWS, (colors[:2], colors[2:]), strict=True):
        named, one = _shuffled(row, rng), int(rng.integers(2))
        sentences.append(
            f"{named[0]} and {named[1]} are at the {place}, and {row[one]} is not on the {SIDES[1 - one]}."
        )
    return " ".join(_shuffled(sentences, rng))


def _ordered(colors: Sequence[str], rng: np.random.Generator) -> str:
    """Three neighbours in any order: who is left of whom is said by the order of words alone."""
    sentences = []
    for first, second in _shuffled(NEIGHBOURS, rng)[1:]:
        pair = [first, second] if rng.integers(2) else [second, first]
        sentences.append(f"{colors[pair[0]]} is {STEPS[pair[0] - pair[1]]} {colors[pair[1]]}.")
    return " ".join(sentences)


def _shuffled(items: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    return [items[index] for index in rng.permutation(len(items))]


ROWS, SIDES = ("top", "bottom"), ("left", "right")
AROUND = (0, 1, 3, 2)
"""Quadrants in reading order, clockwise."""
NEIGHBOURS = ((0, 1), (2, 3), (0, 2), (1, 3))
STEPS = {1: "right of", -1: "left of", 2: "below", -2: "above"}
"""How quadrants stand to each other, by the difference of their places in reading order."""
FORMS: dict[str, Callable[[Sequence[str], np.random.Generator], str]] = {
    "listed": _listed,
    "placed": _placed,
    "referred": _referred,
    "negated": _negated,
    "ordered": _ordered,
}
"""Ways to tell a picture; only ``listed`` is taught to the task's own language model."""


def paint(captions: Sequence[str], side: int = SIDE) -> Tensor:
    """Paint the image of each caption, ``(B, 3, side, side)`` in [-1, 1]; ``side`` is even."""
    indices = torch.tensor([[COLORS.index(color) for color in colors_of(caption)] for caption in captions])
    quadrants = _RGB[indices].reshape(-1, 2, 2, 3).permute(0, 3, 1, 2)
    return quadrants.repeat_interleave(side // 2, 2).repeat_interleave(side // 2, 3)


def read(pixel_values: Tensor) -> list[tuple[str, ...]]:
    """Read from images ``(B, 3, side, side)`` the colour nearest to the mean of each quadrant, in reading order."""
    half = pixel_values.shape[-1] // 2
    means = torch.nn.functional.avg_pool2d(pixel_values.float().cpu(), half).flatten(2).transpose(1, 2)
    nearest = torch.cdist(means, _RGB.expand(len(means), -1, -1)).argmin(-1)
    return [tuple(COLORS[index] for index in row) for row in nearest.tolist()]


def quadrant_text(seed: int) -> Text:
    """Make a text for the task's language model: two to six colours, and the same again."""
    return copied(draw_words(COLORS, 2, 6, np.random.default_rng([seed, 8])))


class Quadrants(Dataset):
    """Captions and their images, which take the place of latents: the UNet of this task works on pixels.

    Args:
        captions: Captions that list colours.
        side: Side of the images, even.
        forms: How each is told, all captions in the first form, then all in the next.
    """

    def __init__(self, captions: Sequence[str], side: int = SIDE, forms: Sequence[str] = ("listed",)) -> None:
        self.captions = [text for form in forms for text in told(captions, form)]
        self.images = paint(captions, side).repeat(len(forms), 1, 1, 1)  # (F * B, 3, side, side)

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.captions)

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        """Return one whole batch."""
        return {
            "caption": [self.captions[draw.index] for draw in draws],
            "latents": self.images[[draw.index for draw in draws]],
            "step": torch.tensor(draws[0].step),
            "position": torch.tensor([draw.position for draw in draws]),
        }


class QuadrantData(SteppedData):
    """Loads training and validation batches of the task.

    Args:
        batch_size: Captions per step and rank.
        seed: Seed of the order.
        num_captions: Captions that are trained on, the first of the 300; None for all.
        side: Side of the images, even.
        forms: How captions tell the picture, see ``told``; each caption is there in every form.
    """

    def __init__(
        self,
        batch_size: int = 32,
        seed: int = 0,
        num_captions: Count | None = None,
        side: Count = SIDE,
        forms: Sequence[str] = ("listed",),
    ) -> None:
        super().__init__(batch_size, seed)
        train, held_out = split()
        self.train, self.val = Quadrants(train[:num_captions], side, forms), Quadrants(held_out, side, forms)
