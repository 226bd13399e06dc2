"""Perfect pictures in place of a model's: what a generator of the world could reach at most."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from src.data.mentions import mentioned
from src.data.request import Identity, ImageStyle, Request
from src.data.schema import read_json
from src.data.world.export import LOOKS, known_look
from src.data.world.render import render
from src.data.world.scenes import COLUMNS, RELATIONS, Scene, looks_scene, subject_scene
from src.data.world.vocabulary import ALL_STYLES, BACKGROUNDS, NOUNS, Look, subject

FIRST_INDIVIDUAL = 2000
"""Beyond those of subjects and style images."""
INDIVIDUALS = 1000
FIRST_VIEW = 100
"""Beyond the photos that are references."""


class Renders:
    """Draws what a prompt asks for with the world's own program: nouns, a place, and the style of a style image.

    One noun is a held-out individual that depends on the prompt; its place in the picture depends on the seed. Of one
    concept, or several nouns or concepts, each stands in its column, from left to right. Without a style image the
    picture is a photo.

    Args:
        subjects: Folder of subjects whose looks are known, such as ``world/subjects``; prompts may name them.
    """

    batch_size = 1

    def __init__(self, subjects: str | None = None) -> None:
        self.subjects = subjects

    def identity(self, prompt: str | None = None) -> Identity:
        """There are no weights."""
        return {"generator": "renders"}

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse what the program cannot draw.

        Raises:
            ValueError: As ``scene_of``.
        """
        for request in requests:
            scene_of(request, self.subjects)

    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Draw one picture per request."""
        return [render(scene_of(request, self.subjects)) for request in requests]


def scene_of(request: Request, subjects: str | None = None) -> Scene:
    """Make the scene that a request asks for.

    Args:
        request: Its prompt names individuals from left to right.
        subjects: As of ``Renders``.

    Raises:
        ValueError: If its prompt lacks a noun or a place of the world, has too many of them, has others places for them
            than columns, or names nobody's subject, or its style is none of the world's.
    """
    named = re.findall(rf"<[\w-]+[^<>]*>|\b(?:{'|'.join(NOUNS)})\b", request.prompt)
    places = [place for place, words in BACKGROUNDS.items() if words in request.prompt]
    if not 0 < len(named) <= max(COLUMNS) or len(places) != 1:
        raise ValueError(
            f"{request.prompt!r} is no prompt of the world: one to {max(COLUMNS)} nouns or concepts and one place, as "
            "'a dog at night'"
        )
    if odd := [words for words in RELATIONS if words != "left of" and words in request.prompt]:
        raise ValueError(f"{request.prompt!r} says {odd[0]!r}, but renders stand from left to right: say 'left of'")
    index = FIRST_INDIVIDUAL + zlib.crc32(request.prompt.encode()) % INDIVIDUALS
    if len(named) == 1 and named[0] in NOUNS:
        scene = subject_scene(index, request.seed, named[0], places[0])
    else:
        looks = [
            subject(index + at, name) if name in NOUNS else _look(mentioned(name)[0], subjects)
            for at, name in enumerate(named)
        ]
        scene = looks_scene(looks, "left of" if len(looks) == 2 else None, places[0], FIRST_VIEW + request.seed)
    return replace(scene, style=_style(request))


def _look(name: str, subjects: str | None) -> Look:
    look = None if subjects is None else known_look(f"{subjects}/{name}", name)
    if look is None:
        raise ValueError(f"nobody knows what <{name}> looks like; give method.subjects, a folder whose {LOOKS} has it")
    return look


def _style(request: Request) -> str:
    if request.style is None:
        return "photo"
    if isinstance(request.style, ImageStyle):
        words = read_json(Path(request.style.path).with_suffix(".json"), "what a style shows")["style"]
    else:
        words = request.style.words
    for name, descriptor in ALL_STYLES.items():
        if descriptor == words:
            return name
    raise ValueError(f"the world has no style {words!r}; choose one of {', '.join(ALL_STYLES.values())}")
