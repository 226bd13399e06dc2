"""Scenes of the world and the grammar that captions them: everything is drawn from one integer seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from src.data.world.families import MEMBERS, family, held_out_family
from src.data.world.vocabulary import ALL_STYLES, BACKGROUNDS, STYLES, Look, subject, training_look

PREFIXES = ("", "photo of ", "a photo of ", "a fancy photo of ", "a close-up, detailed photo of ")
FRAMES = 4
"""Number of frames in one clip of ``frame_scene``."""
COLUMNS = {
    3: ((0.18, 0.5, 0.82), (0.13, 0.16)),
    4: ((0.14, 0.38, 0.62, 0.86), (0.105, 0.125)),
    5: ((0.1, 0.3, 0.5, 0.7, 0.9), (0.07, 0.08)),
}
"""By number of objects side by side, their centres, and the range of half sizes. No model has seen five."""
RELATIONS = ("next to", "left of", "right of", "above", "below", "behind", "in front of")


@dataclass(frozen=True)
class Placed:
    """One individual in a scene: centre, half size (all as shares of the image side) and which way it faces."""

    look: Look
    x: float
    y: float
    half: float
    flip: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom as shares of the image side."""
        return (self.x - self.half, self.y - self.half, self.x + self.half, self.y + self.half)


@dataclass(frozen=True)
class Scene:
    """The ground truth of one image: its objects, drawn back to front, and the caption that describes them."""

    objects: tuple[Placed, ...]
    background: str
    style: str
    caption: str
    relation: str | None = None
    texture_seed: int = field(default=0, compare=False)


def sample_scene(seed: int, number: int | None = None, style: str | None = None) -> Scene:
    """Draw one training scene; the same seed always gives the same scene.

    Args:
        seed: Any number from 0.
        number: Number of objects, one to four; drawn by default.
        style: A key of ``ALL_STYLES``; by default one of ``STYLES`` is drawn.
    """
    rng = np.random.default_rng([seed, 1])
    drawn_style = _style(rng)
    background = str(rng.choice(list(BACKGROUNDS)))
    drawn = int(rng.choice([1, 2, 3, 4], p=[0.62, 0.26, 0.08, 0.04]))
    number, style = number or drawn, style or drawn_style
    looks = [training_look(rng) for _ in range(number)]
    relation = str(rng.choice(RELATIONS)) if number == 2 else None
    prefix = _prefix(style, rng)
    objects = _place(looks, relation, "close-up" in prefix, rng)
    phrase = _join([_describe(look, rng) for look in looks], relation)
    where = f" {BACKGROUNDS[background]}" if rng.random() < 0.75 else ""
    return Scene(objects, background, style, _compose(prefix, phrase + where, style, rng), relation, seed)


def full_caption(scene: Scene) -> str:
    """Write the longest caption of a scene: colour, pattern and noun of every object, the background and the style."""
    phrase = _join([f"a {o.look.color} {o.look.pattern} {o.look.noun}" for o in caption_order(scene)], scene.relation)
    return f"a {ALL_STYLES[scene.style]} of {phrase} {BACKGROUNDS[scene.background]}"


def nouns_and_place(scene: Scene) -> str:
    """Write the caption that names the nouns, the background and, of no photo, the style."""
    medium = "" if scene.style == "photo" else f"a {ALL_STYLES[scene.style]} of "
    nouns = [f"a {placed.look.noun}" for placed in caption_order(scene)]
    return f"{medium}{_join(nouns, scene.relation)} {BACKGROUNDS[scene.background]}"


def caption_order(scene: Scene) -> tuple[Placed, ...]:
    """Return the objects in the order in which captions name them (drawing order differs for "in front of")."""
    return scene.objects[::-1] if scene.relation == "in front of" else scene.objects


def attribute_scene(seed: int) -> Scene:
    """Draw a photo of one training individual whose caption names object, colour, pattern and background."""
    rng = np.random.default_rng([seed, 2])
    look = training_look(rng)
    background = str(rng.choice(list(BACKGROUNDS)))
    caption = f"a photo of a {look.color} {look.pattern} {look.noun} {BACKGROUNDS[background]}"
    return Scene(_place([look], None, False, rng), background, "photo", caption, None, seed)


def mixed_scene(seed: int) -> Scene:
    """Draw photos and training scenes in turn.

    Of eight scenes, three are photos whose caption names everything, and one is a photo whose caption names only noun
    and background, so that the noun alone teaches shape. One of the four training scenes has exactly two objects, with
    all their colours and patterns named, which teaches what colour belongs to which object.
    """
    which = seed % 8
    if which % 2 == 0:
        scene = attribute_scene(seed // 2)
        return replace(scene, caption=nouns_and_place(scene)) if which == 6 else scene
    return named_pair_scene(seed // 2) if which == 7 else sample_scene(seed // 2)


def named_pair_scene(seed: int) -> Scene:
    """Draw a training scene of two objects whose caption names all their colours and patterns."""
    scene = sample_scene(seed, 2)
    return replace(scene, caption=full_caption(scene))


def mixed_with_pairs_scene(seed: int) -> Scene:
    """Draw mixed scenes, a quarter of them photos with a bare noun, and a pair after every three.

    The pairs have even seeds; those among the mixed scenes have odd ones. Of four pairs, three have everything named,
    and one neither colours nor patterns.
    """
    group, which = divmod(seed, 4)
    if which < 3:
        scene = mixed_scene(3 * group + which)
        return replace(scene, caption=nouns_and_place(scene)) if (3 * group + which) % 8 == 2 else scene
    pair = named_pair_scene(2 * seed)
    return replace(pair, caption=nouns_and_place(pair)) if group % 4 == 3 else pair


def every_style_scene(seed: int, number: int | None = None) -> Scene:
    """Draw a scene for those that judge pictures: half of them photos, the others in any style, held-out ones too.

    Of four captions, two are those of ``sample_scene``, which name the style. One names only nouns, place and style,
    and one names no style, so that judges know what is drawn apart from how.
    """
    rng = np.random.default_rng([seed, 6])
    style = "photo" if rng.random() < 0.5 else str(rng.choice([name for name in ALL_STYLES if name != "photo"]))
    scene = sample_scene(seed, number, style)
    kind = int(rng.integers(4))
    if kind < 2:
        return scene
    caption = nouns_and_place(scene)
    return replace(scene, caption=caption if kind == 2 else caption.removeprefix(f"a {ALL_STYLES[style]} of "))


def subject_scene(index: int, view: int, noun: str | None = None, background: str | None = None) -> Scene:
    """Return a photo of a held-out subject, with a background, position, size and direction of its own."""
    rng = np.random.default_rng([index, view, 3])
    look = subject(index, noun)
    names = list(BACKGROUNDS)
    background = background or names[(view + index) % len(names)]
    return Scene(_place([look], None, False, rng), background, "photo", f"a photo of a {look.noun}", None, view)


def looks_scene(looks: Sequence[Look], relation: str | None, background: str, view: int) -> Scene:
    """Return a photo of given individuals, whose places and directions change with ``view``.

    Args:
        looks: One to five individuals, in the order in which a caption names them.
        relation: One of ``RELATIONS``, of two individuals; None of another number.
        background: A key of ``BACKGROUNDS``.
        view: Any number from 0.
    """
    rng = np.random.default_rng([view, 9])
    phrase = _join([f"a {look.noun}" for look in looks], relation)
    return Scene(_place(list(looks), relation, False, rng), background, "photo", f"a photo of {phrase}", relation, view)


def family_scene(index: int, photo: int) -> Scene:
    """Return a photo of ``held_out_family``: first one of each member, then any number of the individual itself.

    All members stand before one background, and the individual before others, so that no background tells who it is.
    """
    member, view = (photo, 0) if photo < len(MEMBERS) else (0, 1 + photo - len(MEMBERS))
    look, names = held_out_family(index)[member], list(BACKGROUNDS)
    rng = np.random.default_rng([index, photo, 7])
    background = names[(index + view) % len(names)]
    return Scene(_place([look], None, False, rng), background, "photo", f"a photo of a {look.noun}", None, photo)


def frame_scene(seed: int) -> Scene:
    """Return frame ``seed % FRAMES`` of clip ``seed // FRAMES``: its training individual, all else drawn anew.

    As many clips as a family has members follow each other.
    """
    index, member = divmod(seed // FRAMES, len(MEMBERS))
    look = family(index)[member]
    rng = np.random.default_rng([seed, 5])
    background = str(rng.choice(list(BACKGROUNDS)))
    objects = _place([look], None, False, rng)
    return Scene(objects, background, "photo", f"a photo of a {look.noun}", None, seed)


def _style(rng: np.random.Generator) -> str:
    return str(rng.choice(list(STYLES), p=[0.6, 0.08, 0.08, 0.08, 0.08, 0.08]))


def _describe(look: Look, rng: np.random.Generator) -> str:
    color = f"{look.color} " if rng.random() < 0.8 else ""
    named = rng.random() < (0.35 if look.pattern == "plain" else 0.7)
    return f"a {color}{look.pattern + ' ' if named else ''}{look.noun}"


def _join(phrases: list[str], relation: str | None) -> str:
    if relation is not None:
        return f"{phrases[0]} {relation} {phrases[1]}"
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + f" and {phrases[-1]}"


def _prefix(style: str, rng: np.random.Generator) -> str:
    if style == "photo":
        return str(rng.choice(PREFIXES, p=[0.3, 0.2, 0.3, 0.1, 0.1]))
    return f"a {ALL_STYLES[style]} of " if rng.random() < 0.6 else ""


def _compose(prefix: str, text: str, style: str, rng: np.random.Generator) -> str:
    if style != "photo" and not prefix:
        return f"{text}, in {ALL_STYLES[style]} style"
    if style == "photo" and not prefix and rng.random() < 0.3:
        return text.removeprefix("a ")
    return prefix + text


def _place(looks: list[Look], relation: str | None, close: bool, rng: np.random.Generator) -> tuple[Placed, ...]:
    def jitter(scale: float) -> float:
        return float(rng.uniform(-scale, scale))

    def put(look: Look, x: float, y: float, half: float) -> Placed:
        return Placed(look, x, y, half, bool(rng.random() < 0.5))

    if len(looks) == 1:
        half = float(rng.uniform(0.38, 0.46) if close else rng.uniform(0.2, 0.38))
        return (put(looks[0], 0.5 + jitter(max(0.0, 0.48 - half)), 0.58 + jitter(0.06), half),)
    if len(looks) > 2:
        columns, sizes = COLUMNS[len(looks)]
        half = float(rng.uniform(*sizes))
        return tuple(put(k, x + jitter(0.02), 0.6 + jitter(0.08), half) for k, x in zip(looks, columns, strict=True))
    first, second = _pair(str(relation), jitter)
    half = float(rng.uniform(0.17, 0.23))
    placed = [put(k, x, y, half * s) for k, (x, y, s) in zip(looks, (first, second), strict=True)]
    return tuple(placed[::-1]) if relation == "in front of" else tuple(placed)


def _pair(relation: str, jitter) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    if relation in ("above", "below"):
        top, bottom = (0.5 + jitter(0.2), 0.27 + jitter(0.03), 1.0), (0.5 + jitter(0.2), 0.74 + jitter(0.03), 1.0)
        return (top, bottom) if relation == "above" else (bottom, top)
    if relation in ("behind", "in front of"):
        side = 0.14 if jitter(1.0) > 0 else -0.14
        back, front = (0.5 + side + jitter(0.05), 0.44 + jitter(0.03), 0.95), (0.5 - side, 0.66 + jitter(0.03), 1.1)
        return (back, front) if relation == "behind" else (front, back)
    left, right = (0.26 + jitter(0.04), 0.6 + jitter(0.06), 1.0), (0.74 + jitter(0.04), 0.6 + jitter(0.06), 1.0)
    swapped = relation == "right of" or (relation == "next to" and jitter(1.0) > 0)
    return (right, left) if swapped else (left, right)
