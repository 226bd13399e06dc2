"""Styles to draw in: a folder of images, each with a few words beside it, or words alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.data.images import find_images
from src.data.request import TEXT

EXAMPLE = '{"style": "watercolor painting", "content": "a house by a lake"}'


@dataclass(frozen=True)
class StyleReference:
    """One style to draw in.

    Attributes:
        name: What tables call it.
        style: Descriptor that prompts name, such as ``watercolor painting``.
        reference: As of ``Request``: the path of an image, or ``text:`` and words.
        content: What the image shows, without its style; empty for words.
    """

    name: str
    style: str
    reference: str
    content: str = ""

    @property
    def is_image(self) -> bool:
        """Whether there is something to be like, or to copy."""
        return not self.reference.startswith(TEXT)


def style_references(folder: str | Path | None, words: Sequence[str] = ()) -> list[StyleReference]:
    """Styles that are shown, and styles that are only described.

    Args:
        folder: Each of its images is a style; ``NAME.json`` beside it says which, and what it shows. None for no image.
        words: Descriptors such as ``retro poster``, each its own reference.

    Raises:
        ValueError: If the folder holds no image, or one has no such file.
    """
    shown = [] if folder is None else [_described(path) for path in find_images(folder)]
    return shown + [StyleReference(style, style, TEXT + style) for style in words]


def _described(path: Path) -> StyleReference:
    words = path.with_suffix(".json")
    advice = f"write there what it shows: {EXAMPLE}"
    if not words.is_file():
        raise ValueError(f"the style image {path} has no {words.name} beside it; {advice}")
    try:
        told = json.loads(words.read_text(encoding="utf-8"))
        return StyleReference(path.stem, told["style"], str(path), told["content"])
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{words} does not say style and content; {advice}") from None
