"""Where images with captions come from."""

from collections.abc import Sequence
from typing import BinaryIO, Protocol


class CaptionSource(Protocol):
    """Images by number; every one of them has a caption."""

    captions: Sequence[str]

    def __len__(self) -> int:
        """How many."""

    def name(self, index: int) -> str:
        """What an image is called in a sentence to the user."""

    def open(self, index: int) -> BinaryIO:
        """The encoded image, to be read and closed."""


def clean(text: str) -> str:
    """A caption in one line with single spaces."""
    return " ".join(text.split())


def named(names: list[str], what: str) -> str:
    """How many of something there are, and the first of their names."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({', '.join(names[:5])}{more})"
