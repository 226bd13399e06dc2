"""The parts of the world: nouns, colours, patterns, backgrounds, styles and the individuals made of them."""

import zlib
from dataclasses import astuple, dataclass
from itertools import count

import numpy as np

from src.data.world.shapes import SHAPES

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (244, 134, 30),
    "yellow": (246, 211, 60),
    "green": (56, 150, 70),
    "blue": (44, 92, 204),
    "purple": (126, 60, 168),
    "pink": (244, 148, 184),
    "brown": (124, 78, 44),
    "white": (244, 244, 240),
    "black": (38, 38, 44),
}
PATTERNS = ("plain", "striped", "spotted", "checkered")
MARKINGS = ("collar", "patch", "badge")
BACKGROUNDS: dict[str, str] = {
    "grass": "on the grass",
    "beach": "on the beach",
    "snow": "in the snow",
    "room": "in a room",
    "night": "at night",
    "forest": "in the forest",
}
STYLES: dict[str, str] = {
    "photo": "photo",
    "cartoon": "cartoon",
    "watercolor": "watercolor painting",
    "pixel": "pixel art",
    "sketch": "pencil sketch",
    "sticker": "sticker",
}
HELD_OUT_STYLES: dict[str, str] = {
    "neon": "neon sign",
    "blueprint": "blueprint",
    "sepia": "sepia print",
    "mosaic": "mosaic",
    "woodcut": "woodcut",
    "glass": "stained glass",
    "heat": "heat map",
    "stitch": "cross stitch",
    "chalk": "chalk drawing",
    "negative": "film negative",
}
"""Styles that no generator is trained on; those that judge pictures, CLIP and the probe, know them."""
ALL_STYLES = {**STYLES, **HELD_OUT_STYLES}

NOUNS = tuple(SHAPES)


@dataclass(frozen=True)
class Look:
    """How one individual looks. Captions may name noun, colour and pattern, never accent or marking."""

    noun: str
    color: str
    accent: str
    pattern: str
    marking: str | None
    marking_color: str


def is_held_out(look: Look) -> bool:
    """Tell whether this individual is kept out of every training scene (one look in eight, by a stable hash)."""
    return zlib.crc32("/".join(map(str, astuple(look))).encode()) % 8 == 0


def draw_look(rng: np.random.Generator, noun: str | None = None, marked: bool = False) -> Look:
    """Draw any individual: three different colours, a pattern and, with probability 1/2 or if ``marked``, a marking."""
    color, accent, marking_color = rng.choice(list(COLORS), 3, replace=False)
    marking = rng.choice(MARKINGS) if marked or rng.random() < 0.5 else None
    return Look(
        noun=str(noun or rng.choice(NOUNS)),
        color=str(color),
        accent=str(accent),
        pattern=str(rng.choice(PATTERNS)),
        marking=None if marking is None else str(marking),
        marking_color=str(marking_color),
    )


def training_look(rng: np.random.Generator) -> Look:
    """Draw an individual that training may see."""
    while is_held_out(look := draw_look(rng)):
        pass
    return look


def subject(index: int, noun: str | None = None) -> Look:
    """Return a held-out individual with two colours, a pattern that shows both, and a marking in a third colour.

    Args:
        index: Number of the individual, from 0; the same index and noun always give the same one.
        noun: A word of ``NOUNS``; by default the nouns take turns.

    Raises:
        ValueError: If ``noun`` is not in the world.
    """
    noun = noun or NOUNS[index % len(NOUNS)]
    if noun not in SHAPES:
        raise ValueError(f"the world has no {noun!r}; choose one of {', '.join(NOUNS)}")
    for attempt in count():
        look = draw_look(np.random.default_rng([index, attempt, 77]), noun, marked=True)
        if is_held_out(look) and look.pattern != "plain":
            return look
    raise AssertionError("unreachable")
