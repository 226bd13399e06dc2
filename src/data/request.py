"""A request for one image, and the interface of everything that draws requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from src.data.images import content_hash, load_image
from src.data.layout import Layout

Identity = dict[str, str]
"""Settings and hashes of weights: generators with equal identities draw equal images."""


@dataclass(frozen=True)
class ImageStyle:
    """A style that is shown by an image, which ``path`` names."""

    path: str

    def key(self) -> str:
        """Identify the style by its pixels, wherever the file lies.

        Raises:
            ValueError: If there is no such image, or it cannot be read.
        """
        return f"image {content_hash(load_image(self.path))}"


@dataclass(frozen=True)
class TextStyle:
    """A style that is described, such as ``a watercolor painting``."""

    words: str

    def key(self) -> str:
        """Identify the style by its words."""
        return f"text:{self.words}"


Style = ImageStyle | TextStyle


@dataclass(frozen=True)
class Request:
    """One image to draw: the same prompt, seed, style and layout give the same image, whatever else is drawn with it.

    Attributes:
        prompt: Text, possibly with concepts as ``<name>``.
        seed: Seed of the initial noise.
        style: Style to draw in; None for no style but the prompt's.
        truncate: Whether to cut a prompt that is longer than the text encoder takes, instead of refusing it.
        layout: Regions of concepts that the prompt mentions; concepts without one may stand anywhere.
    """

    prompt: str
    seed: int
    style: Style | None = None
    truncate: bool = False
    layout: Layout = ()


class Generator(Protocol):
    """Draws requests; every method's ``generator.py`` has one."""

    batch_size: int

    def identity(self, prompt: str | None = None) -> Identity:
        """Return what an image depends on beside prompt and seed: for any prompt, or for this one.

        Keys that start with ``reference.`` do not change a request without a style, so that arms of a sweep share
        their plain images.
        """

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse requests that cannot be drawn, before any is.

        Raises:
            ValueError: If there is such a request.
        """

    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Draw one image per request; an image does not depend on the other requests."""
