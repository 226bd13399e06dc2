"""What a method is asked for: one image."""

from dataclasses import dataclass

from src.data.images import content_hash, load_image

TEXT = "text:"
"""Starts a reference that is described instead of shown."""


@dataclass(frozen=True)
class Request:
    """One image to make: the same prompt, seed and reference always give the same image, whatever else is asked for.

    Attributes:
        prompt: Text, possibly with concepts as ``<name>``.
        seed: Of the initial noise.
        name: What to call the image; it does not change it.
        reference: Style to draw in: the path of an image, or ``text:`` and words. None for no style but the prompt's.
        truncate: Draw the start of a prompt that is longer than the text encoder takes, instead of refusing it.
    """

    prompt: str
    seed: int
    name: str = ""
    reference: str | None = None
    truncate: bool = False


def reference_key(reference: str) -> str:
    """What of a reference changes an image: its words, or the pixels of its image, wherever the file lies.

    Raises:
        ValueError: If there is no such image, or it cannot be read.
    """
    return reference if reference.startswith(TEXT) else f"image {content_hash(load_image(reference))}"
