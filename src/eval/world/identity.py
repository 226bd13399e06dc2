"""Reads the looks of the world's subjects off pictures, and draws true pictures of prompts, the ceiling of models."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from src.data.images import Picture, as_image
from src.data.world.export import known_look
from src.data.world.render import render
from src.data.world.scenes import Scene, looks_scene
from src.data.world.vocabulary import BACKGROUNDS, STYLES, Look
from src.eval.concepts import Concept
from src.eval.protocols.layout import LAYOUTS, Box
from src.eval.world.fitted_look import FIT, fitted_look
from src.eval.world.objects import SIDE, behind, differs, enlarged, native, opened
from src.eval.world.probe import Probe

OBJECT = 0.58
"""Share of a picture's side that the probe's objects had on the average."""
Seen = tuple[Image.Image, Image.Image, tuple[int, int, int, int]]
"""A picture, the empty scene behind it, and the box of what differs, in pixels."""
FIRST_VIEW = 100
"""Beyond the photos that are references."""
NEIGHBOURS = {
    "a red cup": Look("cup", "red", "white", "plain", None, "black"),
    "a blue car": Look("car", "blue", "white", "plain", None, "black"),
}


class LookJudge:
    """Judges subjects of the world whose looks are known: those of ``world/subjects``, and ``world:INDEX``.

    The probe says what an object is; a fit says its colours, pattern and marking, see ``fitted_look``. Both know photos
    alone; other styles are read as if they were photos, which the renders of the same prompts bound.

    Args:
        probe: Reads the noun off a picture of one object.
    """

    attributes = tuple(field.name for field in fields(Look))

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    @property
    def identity(self) -> Mapping[str, Any]:
        """The probe; the fit is a part of the code."""
        return {"probe": self.probe.identity, "fit": FIT}

    def knows(self, concepts: Sequence[Concept]) -> bool:
        """Tell whether the look of each concept is known."""
        return all(known_look(concept.source, concept.class_noun) is not None for concept in concepts)

    def looks(self, pictures: Sequence[Picture], boxes: Sequence[Box]) -> list[Look | None]:
        """Read the look of the object inside each picture's box, None where nothing stands before the background."""
        seen = [object_inside(picture, box) for picture, box in zip(pictures, boxes, strict=True)]
        shown = [one for one in seen if one is not None]
        nouns = iter(self.probe.read([partial(_close_up, one) for one in shown])["object"] if shown else [])
        return [None if one is None else fitted_look(*one[:2], next(nouns), one[2]) for one in seen]

    def right(self, pictures: Sequence[Picture], boxes: Sequence[Box], concepts: Sequence[Concept]) -> Tensor:
        """Tell whether the object inside each picture's box has each concept's attributes, bool ``(N, C, A)``."""
        seen = [None if one is None else words(one) for one in self.looks(pictures, boxes)]
        known = [words(_look(concept)) for concept in concepts]
        right = [[[one is not None and one[name] == of[name] for name in of] for of in known] for one in seen]
        return torch.tensor(right, dtype=torch.bool).reshape(len(seen), len(known), len(self.attributes))

    def telling(self, concepts: Sequence[Concept]) -> Tensor:
        """Tell in which attributes concepts differ, bool ``(A,)``."""
        known = [words(_look(concept)) for concept in concepts]
        return torch.tensor([len({of[name] for of in known}) > 1 for name in self.attributes])

    def renders(self, prompt: str, concepts: Sequence[Concept], number: int) -> list[Image.Image]:
        """Draw true pictures of what a prompt asks for; what it leaves open changes from one to the next."""
        looks = [_look(concept) for concept in concepts]
        return [render(prompted(prompt, looks, FIRST_VIEW + view)) for view in range(number)]


def prompted(prompt: str, looks: Sequence[Look], view: int) -> Scene:
    """Make the scene of a prompt.

    Args:
        prompt: With a ``{}``, or ``{first}`` and ``{second}``; what it says of place, style and neighbours counts.
        looks: Who stands in its slots.
        view: Number of the scene: what the prompt leaves open changes with it.
    """
    background = next((name for name, words in BACKGROUNDS.items() if words in prompt), list(BACKGROUNDS)[view % 6])
    style = next((name for name, words in STYLES.items() if name != "photo" and words in prompt), "photo")
    others = [look for words, look in NEIGHBOURS.items() if words in prompt]
    relation = next((words for words in (*LAYOUTS, "next to") if re.search(rf"\}} {words}\b", prompt)), None)
    return replace(looks_scene([*looks, *others], relation, background, view), style=style)


def object_inside(picture: Picture, box: Box) -> Seen | None:
    """Find what stands inside a box before the background, None if nothing does.

    Args:
        picture: An image of the world, or its file.
        box: Left, top, right, bottom as shares of the image; what is outside counts as background.
    """
    image = native(as_image(picture))
    (scene,) = behind([image])
    left, top, right, bottom = (round(share * SIDE) for share in box)
    shown = scene.copy()
    shown.paste(image.crop((left, top, right, bottom)), (left, top))
    mask = torch.from_numpy(differs(shown, scene))[None, None].float()
    # Without crumbs, unless there are only crumbs.
    mask = kept if (kept := opened(mask)).any() else mask
    rows, columns = (mask[0, 0].amax(axis).nonzero().flatten().tolist() for axis in (1, 0))
    return (shown, scene, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)) if rows else None


def _close_up(seen: Seen) -> Image.Image:
    """The object as large as the probe's objects were; one that is larger is left as it is."""
    image, _, (left, top, right, bottom) = seen
    window = max(right - left, bottom - top) / SIDE / OBJECT
    return image if window >= 1 else enlarged(image, (left + right) / 2 / SIDE, (top + bottom) / 2 / SIDE, window)


def _look(concept: Concept) -> Look:
    look = known_look(concept.source, concept.class_noun)
    assert look is not None, f"the look of {concept.name} is not known"
    return look


def words(look: Look) -> dict[str, str | None]:
    """Attributes by name; where no marking is, its colour is not there either."""
    return asdict(look) | ({} if look.marking else {"marking_color": None})
