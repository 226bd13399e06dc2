"""Perfect pictures in place of a model's: what a generator of the world could reach at most."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from src.data.request import Identity, ImageStyle, Request
from src.data.schema import read_json
from src.data.world.render import render
from src.data.world.scenes import Scene, subject_scene
from src.data.world.vocabulary import ALL_STYLES, BACKGROUNDS, NOUNS

FIRST_INDIVIDUAL = 2000
"""Beyond those of subjects and style images."""
INDIVIDUALS = 1000


class Renders:
    """Draws what a prompt asks for with the world's own program: a noun, a place, and the style of a style image.

    The individual is a held-out one that depends on the prompt; its place in the picture depends on the seed. Without
    a style image the picture is a photo.
    """

    batch_size = 1

    def identity(self, prompt: str | None = None) -> Identity:
        """There are no weights."""
        return {"generator": "renders"}

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse what the program cannot draw.

        Raises:
            ValueError: If a prompt lacks a noun or a place of the world, or its style is none of the world's.
        """
        for request in requests:
            scene_of(request)

    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Draw one picture per request."""
        return [render(scene_of(request)) for request in requests]


def scene_of(request: Request) -> Scene:
    """Make the scene that a request asks for.

    Raises:
        ValueError: If its prompt lacks a noun or a place of the world, or its style is none of the world's.
    """
    nouns = [noun for noun in NOUNS if re.search(rf"\b{noun}\b", request.prompt)]
    places = [place for place, words in BACKGROUNDS.items() if words in request.prompt]
    if len(nouns) != 1 or len(places) != 1:
        raise ValueError(f"{request.prompt!r} is no prompt of the world: one noun and one place, as 'a dog at night'")
    index = FIRST_INDIVIDUAL + zlib.crc32(request.prompt.encode()) % INDIVIDUALS
    return replace(subject_scene(index, request.seed, nouns[0], places[0]), style=_style(request))


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
