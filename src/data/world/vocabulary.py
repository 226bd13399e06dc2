"""What the world is made of: nouns, colours, patterns, backgrounds, styles and the individuals built from them."""

import zlib
from dataclasses import astuple, dataclass
from itertools import count

import numpy as np

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
}

Point = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """One filled primitive of a shape in the unit square [-1, 1]^2, x to the right, y down.

    ``kind`` is ``ellipse`` or ``box`` (two corner points) or ``polygon``; ``role`` says which colour fills it:
    ``body`` (main colour with the pattern), ``accent`` (second colour), ``dark`` or ``light`` (fixed).
    """

    kind: str
    role: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Shape:
    """The silhouette of a class noun and where a marking sits on it."""

    parts: tuple[Part, ...]
    collar: tuple[Point, Point]
    chest: Point


def _e(role: str, *box: float) -> Part:
    return Part("ellipse", role, ((box[0], box[1]), (box[2], box[3])))


def _b(role: str, *box: float) -> Part:
    return Part("box", role, ((box[0], box[1]), (box[2], box[3])))


def _p(role: str, *xy: float) -> Part:
    return Part("polygon", role, tuple(zip(xy[::2], xy[1::2], strict=True)))


SHAPES: dict[str, Shape] = {
    "dog": Shape(
        (
            _p("body", -0.7, -0.05, -1.0, -0.6, -0.85, -0.65, -0.5, 0.0),
            _b("body", -0.7, 0.3, -0.45, 0.98),
            _b("body", 0.1, 0.3, 0.35, 0.98),
            _e("body", -0.85, -0.2, 0.5, 0.62),
            _e("body", 0.1, -0.85, 0.82, -0.02),
            _e("body", 0.5, -0.5, 1.0, -0.1),
            _e("accent", 0.05, -0.8, 0.34, -0.05),
            _e("dark", 0.86, -0.45, 1.0, -0.3),
            _e("dark", 0.48, -0.6, 0.62, -0.44),
        ),
        ((0.08, -0.06), (0.6, 0.12)),
        (-0.25, 0.2),
    ),
    "cat": Shape(
        (
            _p("accent", 0.3, 0.7, 0.85, 0.5, 0.8, -0.1, 0.98, -0.1, 1.0, 0.65, 0.4, 0.95),
            _e("body", -0.6, -0.25, 0.55, 0.98),
            _p("accent", -0.5, -0.45, -0.52, -0.98, -0.1, -0.75),
            _p("accent", 0.5, -0.45, 0.52, -0.98, 0.1, -0.75),
            _e("body", -0.55, -0.85, 0.55, -0.02),
            _e("dark", -0.33, -0.55, -0.15, -0.33),
            _e("dark", 0.15, -0.55, 0.33, -0.33),
            _p("dark", -0.09, -0.28, 0.09, -0.28, 0.0, -0.16),
        ),
        ((-0.42, -0.1), (0.42, 0.08)),
        (0.0, 0.5),
    ),
    "bird": Shape(
        (
            _p("accent", -0.6, 0.1, -1.0, -0.2, -1.0, 0.35),
            _b("dark", -0.15, 0.6, -0.05, 0.98),
            _b("dark", 0.15, 0.6, 0.25, 0.98),
            _e("body", -0.75, -0.25, 0.6, 0.72),
            _e("body", 0.1, -0.85, 0.8, -0.1),
            _p("dark", 0.74, -0.6, 1.0, -0.45, 0.74, -0.32),
            _p("accent", -0.45, 0.0, 0.25, 0.05, -0.35, 0.55),
            _e("dark", 0.45, -0.62, 0.6, -0.45),
        ),
        ((0.05, -0.22), (0.65, -0.06)),
        (0.3, 0.3),
    ),
    "fish": Shape(
        (
            _p("accent", -0.55, 0.0, -1.0, -0.55, -1.0, 0.55),
            _p("accent", -0.2, -0.4, 0.3, -0.85, 0.35, -0.4),
            _e("body", -0.7, -0.55, 0.98, 0.55),
            _e("light", 0.48, -0.3, 0.78, 0.0),
            _e("dark", 0.58, -0.23, 0.74, -0.07),
        ),
        ((0.2, -0.5), (0.36, 0.5)),
        (-0.15, 0.1),
    ),
    "rabbit": Shape(
        (
            _e("body", -0.38, -1.0, -0.05, -0.2),
            _e("body", 0.05, -1.0, 0.38, -0.2),
            _e("accent", -0.29, -0.9, -0.14, -0.4),
            _e("accent", 0.14, -0.9, 0.29, -0.4),
            _e("body", -0.6, 0.05, 0.6, 0.98),
            _e("body", -0.5, -0.45, 0.5, 0.25),
            _e("light", 0.45, 0.55, 0.8, 0.9),
            _e("dark", -0.28, -0.22, -0.12, -0.02),
            _e("dark", 0.12, -0.22, 0.28, -0.02),
        ),
        ((-0.4, 0.15), (0.4, 0.31)),
        (0.0, 0.6),
    ),
    "duck": Shape(
        (
            _p("body", -0.6, 0.2, -1.0, -0.2, -0.5, 0.0),
            _e("body", -0.8, -0.1, 0.7, 0.8),
            _b("body", 0.1, -0.5, 0.5, 0.3),
            _e("body", 0.0, -0.95, 0.65, -0.3),
            _p("dark", 0.55, -0.72, 1.0, -0.6, 0.55, -0.46),
            _e("accent", -0.55, 0.1, 0.25, 0.55),
            _e("dark", 0.3, -0.76, 0.44, -0.6),
        ),
        ((0.05, -0.34), (0.56, -0.17)),
        (0.4, 0.3),
    ),
    "turtle": Shape(
        (
            _e("accent", 0.5, -0.25, 1.0, 0.3),
            _b("accent", -0.6, 0.3, -0.3, 0.75),
            _b("accent", 0.2, 0.3, 0.5, 0.75),
            _p("accent", -0.7, 0.25, -1.0, 0.45, -0.7, 0.45),
            _p("body", -0.85, 0.45, -0.7, -0.3, -0.25, -0.7, 0.25, -0.7, 0.6, -0.3, 0.72, 0.45),
            _e("dark", 0.74, -0.12, 0.88, 0.04),
        ),
        ((-0.84, 0.28), (0.7, 0.46)),
        (-0.05, -0.15),
    ),
    "car": Shape(
        (
            _p("accent", -0.55, 0.0, -0.35, -0.6, 0.35, -0.6, 0.65, 0.0),
            _p("light", -0.38, -0.05, -0.25, -0.45, 0.0, -0.45, 0.0, -0.05),
            _p("light", 0.1, -0.05, 0.1, -0.45, 0.28, -0.45, 0.46, -0.05),
            _p("body", -1.0, 0.5, -1.0, 0.05, -0.7, -0.1, 0.75, -0.1, 1.0, 0.1, 1.0, 0.5),
            _e("dark", -0.75, 0.25, -0.25, 0.75),
            _e("dark", 0.3, 0.25, 0.8, 0.75),
            _e("light", -0.6, 0.4, -0.4, 0.6),
            _e("light", 0.45, 0.4, 0.65, 0.6),
        ),
        ((-0.98, 0.12), (0.98, 0.24)),
        (0.02, 0.2),
    ),
    "boat": Shape(
        (
            _b("dark", -0.08, -0.95, 0.06, 0.4),
            _p("accent", 0.1, -0.9, 0.85, 0.2, 0.1, 0.2),
            _p("light", -0.12, -0.7, -0.7, 0.2, -0.12, 0.2),
            _p("body", -1.0, 0.3, 1.0, 0.3, 0.65, 0.9, -0.65, 0.9),
        ),
        ((-0.92, 0.34), (0.92, 0.48)),
        (0.0, 0.65),
    ),
    "house": Shape(
        (
            _b("dark", 0.4, -0.85, 0.6, -0.3),
            _b("body", -0.75, -0.15, 0.75, 0.95),
            _p("accent", -1.0, -0.1, 0.0, -0.95, 1.0, -0.1),
            _b("dark", -0.2, 0.4, 0.15, 0.95),
            _b("light", 0.3, 0.1, 0.6, 0.4),
            _b("light", -0.6, 0.1, -0.3, 0.4),
        ),
        ((-0.75, -0.08), (0.75, 0.06)),
        (0.0, 0.2),
    ),
    "tree": Shape(
        (
            _b("accent", -0.16, 0.2, 0.16, 0.98),
            _e("body", -0.85, -0.4, 0.15, 0.5),
            _e("body", -0.15, -0.4, 0.85, 0.5),
            _e("body", -0.6, -0.98, 0.6, 0.2),
        ),
        ((-0.16, 0.55), (0.16, 0.72)),
        (0.0, -0.2),
    ),
    "cup": Shape(
        (
            _e("accent", 0.2, -0.35, 0.95, 0.45),
            _e("light", 0.4, -0.15, 0.75, 0.25),
            _p("body", -0.75, -0.7, 0.55, -0.7, 0.4, 0.85, -0.6, 0.85),
            _e("accent", -0.75, -0.85, 0.55, -0.5),
        ),
        ((-0.68, 0.45), (0.46, 0.62)),
        (-0.1, 0.05),
    ),
    "hat": Shape(
        (
            _e("accent", -1.0, 0.25, 1.0, 0.75),
            _p("body", -0.6, 0.45, -0.5, -0.75, 0.5, -0.75, 0.6, 0.45),
            _e("body", -0.5, -0.9, 0.5, -0.55),
        ),
        ((-0.58, 0.2), (0.58, 0.4)),
        (0.0, -0.2),
    ),
    "robot": Shape(
        (
            _b("dark", -0.06, -1.0, 0.06, -0.75),
            _b("accent", -0.85, -0.1, -0.6, 0.5),
            _b("accent", 0.6, -0.1, 0.85, 0.5),
            _b("dark", -0.4, 0.6, -0.12, 0.98),
            _b("dark", 0.12, 0.6, 0.4, 0.98),
            _b("body", -0.6, -0.15, 0.6, 0.7),
            _b("accent", -0.45, -0.8, 0.45, -0.15),
            _e("light", -0.33, -0.65, -0.06, -0.38),
            _e("light", 0.06, -0.65, 0.33, -0.38),
        ),
        ((-0.45, -0.2), (0.45, -0.04)),
        (0.0, 0.3),
    ),
    "flower": Shape(
        (
            _b("dark", -0.07, 0.1, 0.07, 0.98),
            _e("body", -0.35, -1.0, 0.35, -0.35),
            _e("body", -0.35, -0.25, 0.35, 0.4),
            _e("body", -0.8, -0.6, -0.1, 0.05),
            _e("body", 0.1, -0.6, 0.8, 0.05),
            _e("accent", -0.3, -0.55, 0.3, 0.0),
        ),
        ((-0.09, 0.5), (0.09, 0.7)),
        (0.0, -0.28),
    ),
    "backpack": Shape(
        (
            _e("dark", -0.3, -1.0, 0.3, -0.5),
            _e("body", -0.7, -0.85, 0.7, 0.3),
            _b("body", -0.7, -0.25, 0.7, 0.92),
            _b("accent", -0.48, 0.25, 0.48, 0.8),
            _b("dark", -0.48, 0.25, 0.48, 0.33),
        ),
        ((-0.7, 0.0), (0.7, 0.14)),
        (0.0, -0.3),
    ),
}
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
    """Whether this individual is kept out of every training scene (one look in eight, by a stable hash)."""
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
    """The ``index``-th held-out individual: two colours, a pattern that shows both, and a marking in a third colour.

    Args:
        index: Any non-negative integer; the same index and noun always give the same individual.
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
