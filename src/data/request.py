"""What a generator is asked for, one image, and what every generator answers to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from src.data.images import content_hash, load_image

Identity = dict[str, str]
"""Settings and hashes of weights: equal ones draw equal images."""


@dataclass(frozen=True)
class ImageStyle:
    """A style that is shown, by the path of an image."""

    path: str

    def key(self) -> str:
        """What of it changes an image: its pixels, wherever the file lies.

        Raises:
            ValueError: If there is no such image, or it cannot be read.
        """
        return f"image {content_hash(load_image(self.path))}"


@dataclass(frozen=True)
class TextStyle:
    """A style that is described, such as ``a watercolor painting``."""

    words: str

    def key(self) -> str:
        """What of it changes an image: its words."""
        return f"text:{self.words}"


Style = ImageStyle | TextStyle


@dataclass(frozen=True)
class Request:
    """One image to make: the same prompt, seed and style always give the same image, whatever else is asked for.

    Attributes:
        prompt: Text, possibly with concepts as ``<name>``.
        seed: Seeds the initial noise.
        style: What to draw it in; None for no style but the prompt's.
        truncate: Draw the start of a prompt that is longer than the text encoder takes, instead of refusing it.
    """

    prompt: str
    seed: int
    style: Style | None = None
    truncate: bool = False


class Generator(Protocol):
    """Draws requests, and says what it draws with; every method's ``generator.py`` has one."""

    batch_size: int

    def identity(self, prompt: str | None = None) -> Identity:
        """What an image depends on beside prompt and seed: for any prompt, or for this one.

        Keys that start with ``reference.`` do not change a request without a style, so that arms of a sweep share
        their plain images.
        """

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse what could not be drawn, before the first of it is.

        Raises:
            ValueError: If there is such a request.
        """

    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """One image per request; an image does not depend on what else is asked for."""
