"""Styles to draw in, and prompts that name them or not."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.data.first_looks import ImageFolder
from src.data.images import find_images
from src.data.request import ImageStyle, Style, TextStyle
from src.data.schema import RefusedFileError, read_json


@dataclass(frozen=True)
class StylePrompt:
    """A prompt without any style.

    Attributes:
        content: What to draw, such as ``a cat``.
        category: The superclass that prompts of arXiv 2507.04482 name, such as ``Animals``; empty to leave it out.
    """

    content: str
    category: str = ""

    @property
    def plain(self) -> str:
        """The prompt without a style: ``a cat, animals``."""
        return f"{self.content}, {self.category.lower()}" if self.category else self.content

    def styled(self, style: str) -> str:
        """Name a style: ``a cat, animals, in watercolor painting style``; ``flat style`` gets no second "style".

        Args:
            style: Descriptor, such as ``watercolor painting``.
        """
        return f"{self.plain}, in {style.removesuffix('style').strip()} style"


EXAMPLE = '{"style": "watercolor painting", "content": "a house by a lake"}'


@dataclass(frozen=True)
class StyleReference:
    """One style to draw in.

    Attributes:
        name: Name of the style in tables.
        style: Descriptor that prompts name, such as ``watercolor painting``.
        reference: The style of a request.
        content: What the image shows, without its style; empty for a style of words.
    """

    name: str
    style: str
    reference: Style
    content: str = ""

    @property
    def is_image(self) -> bool:
        """Whether the style is shown by an image, which a drawn image can resemble or copy."""
        return isinstance(self.reference, ImageStyle)

    @property
    def path(self) -> str:
        """Path of the image that shows the style."""
        assert isinstance(self.reference, ImageStyle)
        return self.reference.path


def style_references(folder: ImageFolder | Path | None, words: Sequence[str] = ()) -> list[StyleReference]:
    """List the styles that images show, then those that words describe.

    Args:
        folder: Folder of images, each a style; ``NAME.json`` beside it names it and what it shows. None for no image.
        words: Descriptors such as ``retro poster``, each a style.

    Raises:
        ValueError: If the folder holds no image, or one has no such file.
    """
    shown = [] if folder is None else [_described(path) for path in find_images(folder, beside=(".json",))]
    return shown + [StyleReference(style, style, TextStyle(style)) for style in words]


def _described(path: Path) -> StyleReference:
    words = path.with_suffix(".json")
    advice = f"write there what it shows: {EXAMPLE}"
    if not words.is_file():
        raise ValueError(f"the style image {path} has no {words.name} beside it; {advice}")
    try:
        described = read_json(words, "what a style shows")
    except RefusedFileError as error:
        raise RefusedFileError(f"{error}; {advice}") from error
    told = [described.get(name) for name in ("style", "content")] if isinstance(described, dict) else []
    if not told or not all(isinstance(text, str) and text.strip() and text.isprintable() for text in told):
        raise RefusedFileError(f"{words} does not say style and content; {advice}")
    style, content = map(str, told)
    return StyleReference(path.stem, style, ImageStyle(str(path)), content)


CHALLENGE = "Basic"
LEFT_OUT = ("Abstract", "Arts", "People", "World Knowledge")
COLUMNS = ("Prompt", "Category", "Challenge")


def style_prompts(tsv_path: str | Path) -> list[StylePrompt]:
    """Read the basic prompts about things: those of arXiv 2507.04482, identified by their number.

    Args:
        tsv_path: ``PartiPrompts.tsv`` of google-research/parti.

    Returns:
        190 prompts in the order of the file.

    Raises:
        ValueError: If there is no such file, or it has other columns.
    """
    path = Path(tsv_path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; name the PartiPrompts.tsv of github.com/google-research/parti")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = set(COLUMNS) - set(rows.fieldnames or [])
            found = [] if missing else [row for row in rows if _is_basic_thing(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RefusedFileError(f"{path} cannot be read as a list of prompts ({error})") from error
    if missing:
        raise RefusedFileError(f"{path} has no column {', '.join(sorted(missing))}; is it PartiPrompts.tsv?")
    if any(not row["Prompt"] or row["Category"] is None for row in found):
        raise RefusedFileError(f"{path} has a line that is cut short; fetch it again")
    return [StylePrompt(row["Prompt"], row["Category"]) for row in found]


def _is_basic_thing(row: dict[str, str]) -> bool:
    return row["Challenge"] == CHALLENGE and row["Category"] not in LEFT_OUT
