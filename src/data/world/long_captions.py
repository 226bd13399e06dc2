"""Captions whose meaning needs context: word order, relations, counting, and which attribute belongs to which object.

The short captions of ``src.data.world.scenes`` name an object and its attributes side by side. Here these are in
different sentences; the ground truth is again the scene.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise

import numpy as np

from src.data.world.scenes import Placed, Scene, caption_order, mixed_scene, sample_scene
from src.data.world.vocabulary import BACKGROUNDS, NOUNS, STYLES, Look, draw_look, is_held_out

NUMBERS = ("no", "one", "two", "three", "four")
SIDES = {
    2: ("on the left", "on the right"),
    3: ("on the left", "in the middle", "on the right"),
    4: ("on the far left", "on the left", "on the right", "on the far right"),
}
"""Places of objects that stand side by side, from left to right."""
DEPTHS = {
    "above": ("above", "below"),
    "below": ("below", "above"),
    "behind": ("behind", "in front"),
    "in front of": ("in front", "behind"),
}
"""Places of the first and second object of a caption for the other relations."""
INVERSE = {
    "next to": "next to",
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "behind": "in front of",
    "in front of": "behind",
}
_NEXT_TRY = 20_000_000
"""Distance of the scene seeds that are tried for one caption; training and validation seeds are smaller."""


@dataclass(frozen=True)
class Form:
    """One way to distribute the content of a caption over its sentences.

    Attributes:
        numbers: Number of objects to its probability.
        sentences: Writes the sentences of a scene, without the background, from the scene and a random generator.
        fits: Tells whether a scene can be described this way.
    """

    numbers: dict[int, float]
    sentences: Callable[[Scene, np.random.Generator], list[str]]
    fits: Callable[[Scene], bool] = lambda scene: True


def long_scene(seed: int, form: str | None = None) -> Scene:
    """Draw a training scene of two to four objects with a caption of one of ``FORMS``; one seed is one scene.

    Raises:
        ValueError: If ``form`` is unknown.
    """
    if form is not None and form not in FORMS:
        raise ValueError(f"unknown form of caption {form!r}; choose one of {', '.join(FORMS)}")
    rng = np.random.default_rng([seed, 6])
    drawn = str(rng.choice(list(FORMS)))
    form = form or drawn
    chosen = FORMS[form]
    number = int(rng.choice(list(chosen.numbers), p=list(chosen.numbers.values())))
    tries = (sample_scene(seed + attempt * _NEXT_TRY, number) for attempt in count())
    scene = next(scene for scene in tries if chosen.fits(scene))
    if form == "counted":
        scene = _with_shared_noun(scene, rng)
    return replace(scene, caption=_with_place(scene, chosen.sentences(scene, rng), rng), texture_seed=seed)


def short_or_long_scene(seed: int) -> Scene:
    """Draw from ``mixed_scene`` and ``long_scene`` in turn, which teaches both words and what joins them."""
    return long_scene(seed // 2) if seed % 2 else mixed_scene(seed // 2)


def places(scene: Scene) -> list[tuple[str, Placed]]:
    """Pair the words for a place with its object: left, middle and right; above and below; in front and behind."""
    if scene.relation in DEPTHS:
        return list(zip(DEPTHS[scene.relation], caption_order(scene), strict=True))
    return list(zip(SIDES[len(scene.objects)], left_to_right(scene), strict=True))


def left_to_right(scene: Scene) -> list[Placed]:
    """Sort the objects by their centres, from left to right."""
    return sorted(scene.objects, key=lambda placed: placed.x)


def questions(scene: Scene) -> list[tuple[str, str]]:
    """List questions and answers that follow from the caption, "the dog is" and "red and striped", for unique nouns."""
    nouns = [look.noun for look in _looks(scene)]
    return [(f"the {look.noun} is", _attributes(look)) for look in _looks(scene) if nouns.count(look.noun) == 1]


def new_words() -> set[str]:
    """Return every word of these captions that short captions lack."""
    spoken = "are both from is it middle not one order other them they this three four"
    return {*spoken.split(), *(plural(noun) for noun in NOUNS)}


def plural(noun: str) -> str:
    """Return the plural of a noun of the world."""
    return noun if noun == "fish" else f"{noun}s"


def _described(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Describe every object in sentences of its own, with at least 40 words in all."""
    sentences = [_opening(_shuffled(_named(scene), rng), scene)]
    for place, placed in _shuffled(places(scene), rng):
        sentences.append(f"the {placed.look.noun} is the one {place}, it is {_attributes(placed.look)}")
    return sentences + _relations(scene)


def _placed(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Name attributes by place, and the place of all nouns but one, so that who is red follows from two sentences."""
    where = _shuffled(places(scene), rng)
    seen = [f"the one {place} is {_attributes(placed.look)}" for place, placed in where]
    nouns = [f"the {placed.look.noun} is {place}" for place, placed in _shuffled(where, rng)[1:]]
    return [_opening(_shuffled(_named(scene), rng), scene), *seen, *nouns]


def _ordered(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Write three lists in the same order, so that only the place in a list tells what belongs to what."""
    looks = [placed.look for placed in left_to_right(scene)]
    return [
        f"{_opening([f'a {look.noun}' for look in looks], scene)} from left to right",
        f"in this order they are {_listed([look.color for look in looks])}",
        f"in this order they are {_listed([look.pattern for look in looks])}",
    ]


def _excluded(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Say which object an attribute does not belong to, from which its owner follows."""
    first, second = caption_order(scene)
    pair = f"a {first.look.noun} {scene.relation} a {second.look.noun}"
    sentences = [_opening([pair], scene)]
    for attribute in ("color", "pattern"):
        first, second = _shuffled(_looks(scene), rng)
        ours, theirs = getattr(first, attribute), getattr(second, attribute)
        if ours == theirs:
            sentences.append(f"both of them are {ours}")
        else:
            said = _shuffled([ours, theirs], rng)
            sentences.append(f"one of them is {said[0]}, the other is {said[1]}, the {first.noun} is not {theirs}")
    return sentences


def _counted(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Name nouns with their number instead of one by one."""
    groups: dict[str, list[Look]] = {}
    for look in _shuffled(_looks(scene), rng):
        groups.setdefault(look.noun, []).append(look)
    named = [f"{NUMBERS[len(ours)]} {noun if len(ours) == 1 else plural(noun)}" for noun, ours in groups.items()]
    sentences = [_opening(named, scene)]
    for noun, ours in groups.items():
        who = f"the {noun}" if len(ours) == 1 else f"one of the {plural(noun)}"
        sentences += [f"{who} is {_attributes(look)}" for look in ours]
    return sentences


def _no_noun_twice(scene: Scene) -> bool:
    return len({look.noun for look in _looks(scene)}) == len(scene.objects)


FORMS = {
    "described": Form({2: 0.5, 3: 0.35, 4: 0.15}, _described, _no_noun_twice),
    "placed": Form({2: 0.6, 3: 0.4}, _placed, _no_noun_twice),
    "ordered": Form({2: 0.5, 3: 0.3, 4: 0.2}, _ordered, lambda scene: scene.relation not in DEPTHS),
    "excluded": Form({2: 1.0}, _excluded, _no_noun_twice),
    "counted": Form({2: 0.4, 3: 0.4, 4: 0.2}, _counted),
}
"""Forms of captions: ``described`` has 40 words and more, ``placed`` and ``excluded`` bind attributes through
places and negation, ``ordered`` through word order alone, ``counted`` asks for a number."""


def _opening(named: Sequence[str], scene: Scene) -> str:
    return f"a {STYLES[scene.style]} of {_listed(named)}"


def _with_place(scene: Scene, sentences: list[str], rng: np.random.Generator) -> str:
    """Add the background, to the first sentence or as the last one."""
    where = BACKGROUNDS[scene.background]
    first, *rest = sentences
    spoken = [f"{first} {where}", *rest] if rng.random() < 0.5 else [*sentences, f"they are {where}"]
    return ". ".join(spoken)


def _relations(scene: Scene) -> list[str]:
    """Say how neighbours stand to each other, for the last two in both directions."""
    relation = scene.relation or "left of"
    nouns = [placed.look.noun for placed in (caption_order(scene) if scene.relation else left_to_right(scene))]
    forth = [f"the {first} is {relation} the {second}" for first, second in pairwise(nouns)]
    return [*forth, f"the {nouns[-1]} is {INVERSE[relation]} the {nouns[-2]}"]


def _with_shared_noun(scene: Scene, rng: np.random.Generator) -> Scene:
    """Give two or more of the objects the same noun, and no look that is kept out of training."""
    noun = scene.objects[0].look.noun
    sharing = int(rng.integers(2, len(scene.objects) + 1))
    shared = [replace(placed, look=_training_look(noun, rng)) for placed in scene.objects[:sharing]]
    return replace(scene, objects=(*shared, *scene.objects[sharing:]))


def _training_look(noun: str, rng: np.random.Generator) -> Look:
    while is_held_out(look := draw_look(rng, noun)):
        pass
    return look


def _looks(scene: Scene) -> list[Look]:
    return [placed.look for placed in scene.objects]


def _named(scene: Scene) -> list[str]:
    return [f"a {look.noun}" for look in _looks(scene)]


def _attributes(look: Look) -> str:
    return f"{look.color} and {look.pattern}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _shuffled(items: Sequence, rng: np.random.Generator) -> list:
    return [items[index] for index in rng.permutation(len(items))]
