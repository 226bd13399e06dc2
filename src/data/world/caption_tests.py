"""Held-out captions and pairs of prompts with known ground truth, which generators are tested with."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from src.data.world.datamodules import VALIDATION_START
from src.data.world.long_captions import left_to_right, long_scene
from src.data.world.scenes import Scene, attribute_scene, full_caption, sample_scene
from src.data.world.vocabulary import COLORS, NOUNS, Look

LONG = 40
"""Smallest number of words of a long caption."""
STACKED = ("above", "below")
SIDED = ("left of", "right of")
OCCLUDING = ("behind", "in front of")
BINDINGS = ("placed", "ordered", "excluded")
"""Forms of long captions that name attributes apart from their objects."""


@dataclass(frozen=True)
class CaptionTest:
    """A held-out photo and a caption that says noun, colour and pattern of every object in it.

    Attributes:
        kind: A key of ``KINDS``.
        caption: Caption of this kind; no other test of the kind has it.
        scene: The ground truth; no two of its objects share a colour, and none hides another.
        placed: Whether the caption says which object is where.
    """

    kind: str
    caption: str
    scene: Scene
    placed: bool

    @property
    def short(self) -> str:
        """The shortest caption that says the same."""
        return full_caption(self.scene)

    @property
    def stacked(self) -> bool:
        """Whether one object is above the other, not beside it."""
        return self.scene.relation in STACKED

    @property
    def looks(self) -> list[Look]:
        """The looks of the objects, from left to right or from top to bottom."""
        scene = self.scene
        ordered = sorted(scene.objects, key=lambda placed: placed.y) if self.stacked else left_to_right(scene)
        return [placed.look for placed in ordered]


@dataclass(frozen=True)
class Kind:
    """One way to ask for a scene.

    Attributes:
        draw: Draws a scene from a seed.
        fits: Tells whether a scene tests what this kind is about.
        caption: Writes the caption of a scene.
        placed: Whether these captions say which object is where.
    """

    draw: Callable[[int], Scene]
    fits: Callable[[Scene], bool]
    caption: Callable[[Scene], str] = lambda scene: scene.caption
    placed: bool = True


def caption_tests(kinds: Sequence[str], number: int) -> list[CaptionTest]:
    """Return the first ``number`` held-out tests of each kind, kind by kind; no scene is in two kinds.

    Raises:
        ValueError: If a kind is unknown or repeated, or there is nothing to test.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"unknown kind of captions {unknown[0]!r}; choose from {', '.join(KINDS)}")
    if not kinds or len(set(kinds)) < len(kinds) or number < 1:
        raise ValueError(f"need different kinds of captions and at least one of each, got {list(kinds)} and {number}")
    return [test for kind in kinds for test in islice(_tests(kind), number)]


def _tests(kind: str) -> Iterator[CaptionTest]:
    chosen, met = KINDS[kind], set[str]()
    for seed in count(VALIDATION_START + list(KINDS).index(kind), step=len(KINDS)):
        scene = chosen.draw(seed)
        caption = chosen.caption(scene)
        if _can_be_read(scene) and chosen.fits(scene) and caption not in met:
            met.add(caption)
            yield CaptionTest(kind, caption, scene, chosen.placed)


def _can_be_read(scene: Scene) -> bool:
    """Tell whether all objects and their colours can be seen, and no two share a colour."""
    colors = [placed.look.color for placed in scene.objects]
    return scene.style == "photo" and scene.relation not in OCCLUDING and len(set(colors)) == len(colors)


def _is_bound(scene: Scene) -> bool:
    """Tell whether each noun has one place that the caption names; four in a row are too small to read well."""
    nouns = {placed.look.noun for placed in scene.objects}
    return len(nouns) == len(scene.objects) <= 3 and scene.relation != "next to"


KINDS = {
    "short": Kind(attribute_scene, lambda scene: True),
    "long": Kind(
        lambda seed: long_scene(seed, "described"),
        lambda scene: _is_bound(scene) and len(scene.caption.split()) >= LONG,
    ),
    "binding": Kind(lambda seed: long_scene(seed, BINDINGS[seed % len(BINDINGS)]), _is_bound),
    "relation": Kind(lambda seed: sample_scene(seed, 2), _is_bound, full_caption),
    "counting": Kind(
        # Captions of this form do not say how two objects stand to each other; three and more stand in a row.
        lambda seed: long_scene(seed, "counted"),
        lambda scene: len(scene.objects) > 2,
        placed=False,
    ),
}
"""``short``: one object. ``long``: two or three, in 40 words or more. ``binding``: attributes apart from their objects.
``relation``: two objects, one left of, right of, above or below the other. ``counting``: three or four, by number."""


DIFFERENCES = {"object": (True, False), "color": (False, True), "both": (True, True)}
"""Whether object and colour differ between the base prompt and the injected one."""


@dataclass(frozen=True)
class PromptPair:
    """A base prompt and the one that is injected into it, by the words in which they differ."""

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
    """Draw distinct pairs, the same for the same seed.

    Args:
        difference: A key of ``DIFFERENCES``.
        number: Number of pairs.
        seed: Seed of the draws.

    Raises:
        ValueError: If the difference is unknown, or there are fewer pairs.
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
